"""Blocks from the database that the journal is replicated into, as of one moment."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from app.chain.header import Delegation
from app.chain.verify import Block, Command, Fault
from app.replication.block_reader import BlockReader, CurrentState, HeldBlock, HeldCommand
from app.verify.source import Extent, Newest


class DatabaseSource:
    """An environment in a database. Every call may raise `DatabaseUnavailable`."""

    whole = True

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._done = 0
        self._total: int | None = None
        self._current: CurrentState | None = None

    @property
    def extent(self) -> Extent:
        """Blocks."""
        return Extent(self._done, self._total)

    @property
    def prover(self) -> None:
        """Nobody: there is no need of proofs where the commands themselves are."""

    async def newest(self) -> Newest | None:
        """The block that `rsm_current_state` points to. Raises `Fault` when it is another one."""
        newest = await self._reader.newest_block()
        if newest is None:
            return None
        self._total = newest.height + 1
        self._current = current = await self._reader.current_state()
        if current is None or current.height < newest.height:
            pointed = "none" if current is None else current.height
            raise Fault(newest.height, "rsm_current_state: batch_seq", newest.height, pointed)
        return Newest(current.height, current.block_hash)

    async def authorities(self) -> list[Delegation]:
        """All delegations; none where the database knows of no blocks yet."""
        if await self._reader.newest_block() is None:
            return []
        return await self._reader.authorities()

    async def blocks(self, start: int) -> AsyncGenerator[Block, None]:
        """The blocks from height `start` on, behind the one before them."""
        first = max(start - 1, 0)
        if await self._reader.newest_block() is None:
            return
        async for held in self._reader.blocks(first, content=True):
            yield self._block(held)
            self._done = held.header.batch_seq + 1

    def _block(self, held: HeldBlock) -> Block:
        height, roots = held.header.batch_seq, held.roots
        if roots is None:
            raise Fault(height, "roots", "a row of rsm_roots", "none")
        current = self._current
        if current is not None and current.height == height:
            for name, expected, found in (
                ("batch_root", held.header.batch_root, current.batch_root),
                ("state_root", roots.state_root, current.state_root),
            ):
                if expected != found:
                    raise Fault(height, f"rsm_current_state: {name}", expected, found)
        return Block(
            header=held.header,
            roots=roots,
            commands=[_command(height, command) for command in held.commands],
            stated_hash=held.block_hash,
            first_command_id=held.first_command_id,
            last_command_id=held.last_command_id,
            authority=held.authority,
        )


@asynccontextmanager
async def connected(dsn: str, environment: str) -> AsyncIterator[DatabaseSource]:
    """Connect. Raises `DatabaseUnavailable`."""
    async with await BlockReader.connect(dsn, environment) as reader:
        yield DatabaseSource(reader)


def _command(height: int, held: HeldCommand) -> Command:
    content = held.content
    if content is None:
        raise Fault(height, f"command_id {held.command_id}", "an entry", "none")
    if content.request_uuid != held.request_uuid:
        field = f"command_id {held.command_id}: request_uuid"
        raise Fault(height, field, held.request_uuid, content.request_uuid)
    return Command(
        command_id=held.command_id,
        request_uuid=content.request_uuid.bytes,
        command_data=content.command_data,
        sent_identity=content.command_identity_hash,
        events=content.events,
        stated_identity=held.command_identity_hash,
        leaf_index=held.leaf_index,
    )
