"""Blocks from the database that the journal is replicated into, as of one moment."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from app.chain.header import Delegation
from app.chain.verify import Block, Command, Fault
from app.replication.block_reader import BlockReader, HeldBlock, HeldCommand
from app.verify.source import Extent, Newest


class DatabaseSource:
    """An environment in a database. Every call may raise `DatabaseUnavailable`."""

    whole = True

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._done = 0
        self._total: int | None = None

    @property
    def extent(self) -> Extent:
        """Blocks."""
        return Extent(self._done, self._total)

    @property
    def prover(self) -> None:
        """Nobody: there is no need of proofs where the commands themselves are."""

    async def newest(self) -> Newest | None:
        """The highest block."""
        found = await self._reader.newest_block()
        if found is None:
            return None
        self._total = found.height + 1
        return Newest(found.height, found.block_hash)

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
            yield _block(held)
            self._done = held.header.batch_seq + 1


@asynccontextmanager
async def connected(dsn: str, environment: str) -> AsyncIterator[DatabaseSource]:
    """Connect. Raises `DatabaseUnavailable`."""
    async with await BlockReader.connect(dsn, environment) as reader:
        yield DatabaseSource(reader)


def _block(held: HeldBlock) -> Block:
    height = held.header.batch_seq
    if held.roots is None:
        raise Fault(height, "roots", "a row of rsm_roots", "none")
    return Block(
        header=held.header,
        roots=held.roots,
        commands=[_command(height, command) for command in held.commands],
        stated_hash=held.block_hash,
        first_command_id=held.first_command_id,
        last_command_id=held.last_command_id,
        authority=held.authority,
    )


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
