"""Blocks out of Postgres, with the content that they commit to.

For verifying, for rebuilding the commitment store, and for showing a block's commands once the log
has given them back. What is read is taken as it is: rows that are missing or contradict each other
are handed on, and the caller judges. Nothing here depends on the side that writes the rows.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from app.chain.header import Delegation, Header, Roots
from app.model.codec import decode_hook
from app.model.entry import Entry, Event, Hash32
from app.replication.connection import Connection, Limits, open_connection, translated

if TYPE_CHECKING:
    import asyncpg

BLOCK_READER_LIMITS: Final = Limits(10, 60, 10, 600)
# What one look at the database brings at most, save for a single block that is larger.
MAX_COMMANDS: Final = 2000
MAX_CONTENT_BYTES: Final = 8 << 20
_COMMANDS_AT_ONCE: Final = 250

# A limit that the planner can see keeps it from reading all of the roots.
_BLOCKS: Final = """
SELECT * FROM (
    SELECT * FROM rsm_blocks WHERE environment = $1 AND batch_seq >= $2
    ORDER BY batch_seq LIMIT 256) AS blocks
LEFT JOIN rsm_roots AS roots USING (environment, batch_seq)
ORDER BY batch_seq
"""
_TABLE: Final = "SELECT to_regclass('public.rsm_blocks')"
_NEWEST: Final = """
SELECT batch_seq, block_hash FROM rsm_blocks WHERE environment = $1
ORDER BY batch_seq DESC LIMIT 1
"""
_CURRENT_STATE: Final = """
SELECT batch_seq, block_hash, batch_root, state_root FROM rsm_current_state WHERE environment = $1
"""
_AUTHORITIES: Final = """
SELECT delegator, delegate, valid_from, valid_until, signature, batch_seq
FROM signing_authorities WHERE environment = $1
ORDER BY batch_seq DESC, valid_from DESC
"""
_COMMANDS: Final = """
SELECT batch_seq, leaf_index, command_id, request_uuid, command_type, command_identity_hash
FROM rsm_block_commands WHERE environment = $1 AND batch_seq BETWEEN $2 AND $3
ORDER BY batch_seq, leaf_index
"""
_COMMANDS_OF_A_BLOCK: Final = """
SELECT leaf_index, command_id, request_uuid, command_type, command_identity_hash
FROM rsm_block_commands WHERE environment = $1 AND batch_seq = $2 AND leaf_index > $3
ORDER BY leaf_index LIMIT $4
"""
_SIZES: Final = """
SELECT command_id, octet_length(command_data) + coalesce((
    SELECT sum(octet_length(event_data)) FROM engine_events AS event
    WHERE event.environment = $1 AND event.command_id = command.command_id), 0) AS size_bytes
FROM engine_commands AS command WHERE environment = $1 AND command_id = ANY($2::bigint[])
UNION ALL
SELECT command_id, octet_length(entry)
FROM dead_letters WHERE environment = $1 AND command_id = ANY($2::bigint[])
UNION ALL
SELECT command_id, octet_length(entry)
FROM rsm_block_commands
WHERE environment = $1 AND batch_seq BETWEEN $3 AND $4 AND entry IS NOT NULL
"""
_CONTENTS: Final = """
SELECT command_id, request_uuid, received_ts_ms, command_type, command_data, command_identity_hash
FROM engine_commands WHERE environment = $1 AND command_id = ANY($2::bigint[])
"""
_EVENTS: Final = """
SELECT command_id, event_topic, event_key, event_data, l2_sequence, event_type
FROM engine_events WHERE environment = $1 AND command_id = ANY($2::bigint[])
ORDER BY command_id, event_idx
"""
# Entries that are kept whole: dead letters, and repeated ones that a block covers.
_WHOLE_ENTRIES: Final = """
SELECT command_id, entry
FROM dead_letters WHERE environment = $1 AND command_id = ANY($2::bigint[])
UNION ALL
SELECT command_id, entry
FROM rsm_block_commands
WHERE environment = $1 AND batch_seq BETWEEN $3 AND $4 AND command_id = ANY($2::bigint[])
    AND entry IS NOT NULL
"""

_entry_decoder: Final = msgspec.msgpack.Decoder(Entry, dec_hook=decode_hook)
_Part = TypeVar("_Part", bound=Struct)


class BlockReference(NamedTuple):
    """Which block."""

    height: int
    block_hash: bytes


class CurrentState(NamedTuple):
    """What `rsm_current_state` says of the newest block."""

    height: int
    block_hash: bytes
    batch_root: bytes
    state_root: bytes


class HeldCommand(Struct, kw_only=True, gc=False):
    """A block command. `command_identity_hash` is what the block commits to by its own account.

    `content` is the entry as far as blocks commit to it: `request_uuid`, `command_data`, `events`
    and `command_identity_hash` as sent (and `received_ts_ms` and `command_type`); what else an
    entry has may be missing. It is None when it was not asked for, or is not to be had.
    """

    command_id: int
    request_uuid: UUID
    command_type: str
    command_identity_hash: bytes
    leaf_index: int
    content: Entry | None = None


class HeldBlock(NamedTuple):
    """A block as Postgres holds it. `authority` is the delegation journaled with it, if one was."""

    header: Header
    roots: Roots | None
    block_hash: bytes
    first_command_id: int
    last_command_id: int
    authority: Delegation | None
    commands: list[HeldCommand]


class BlockReader:
    """Reads an environment's blocks over one connection.

    Every question raises `DatabaseUnavailable`, also where the schema is older than blocks.
    """

    def __init__(self, connection: Connection, environment: str) -> None:
        self._connection = connection
        self._environment = environment

    @classmethod
    async def connect(
        cls, dsn: str, environment: str, *, limits: Limits = BLOCK_READER_LIMITS
    ) -> Self:
        """Connect for reading all of it as of one moment, that of the first question."""
        connection = await open_connection(dsn, "journal-blocks", limits)
        try:
            with translated("reading blocks"):
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        except BaseException:
            connection.terminate()
            raise
        return cls(connection, environment)

    async def newest_block(self) -> BlockReference | None:
        """The highest block; None where there is none, or before the migration for blocks."""
        with translated("reading blocks"):
            if await self._connection.fetchval(_TABLE) is None:
                return None
        rows = await self._fetch(_NEWEST)
        return BlockReference(*rows[0]) if rows else None

    async def current_state(self) -> CurrentState | None:
        """The pointer to the newest block; None where there is none."""
        rows = await self._fetch(_CURRENT_STATE)
        return CurrentState(*rows[0]) if rows else None

    async def authorities(self) -> list[Delegation]:
        """All delegations, the newest first."""
        return [delegation for delegation, _ in await self._authorities()]

    async def blocks(
        self, from_height: int = 0, *, content: bool = False
    ) -> AsyncGenerator[HeldBlock]:
        """The blocks from a height on, in order, with their commands.

        In bounded memory: about `MAX_COMMANDS` commands and `MAX_CONTENT_BYTES` of their content at
        a time, or one block.
        """
        authorities = {height: delegation for delegation, height in await self._authorities()}
        height = from_height
        while rows := await self._fetch(_BLOCKS, height):
            height = rows[-1]["batch_seq"] + 1
            blocks = [_block(row, authorities.get(row["batch_seq"])) for row in rows]
            sizes = [block.header.command_count for block in blocks]
            for part in _parts(blocks, sizes, MAX_COMMANDS):
                run = await self._with_commands(part)
                for light in await self._content_parts(run) if content else [run]:
                    for block in await self._with_contents(light) if content else light:
                        yield block

    async def commands(self, height: int, *, content: bool = False) -> list[HeldCommand]:
        """The commands of one block, in order; none where there is no such block.

        A few at a time: what else the event loop has to do waits while rows become objects.
        """
        found: list[HeldCommand] = []
        after = -1
        while rows := await self._fetch(_COMMANDS_OF_A_BLOCK, height, after, _COMMANDS_AT_ONCE):
            after = rows[-1]["leaf_index"]
            part = [_command(row) for row in rows]
            if content:
                contents = await self._contents(part, height, height)
                part = [_with_content(command, contents) for command in part]
            found += part
        return found

    async def close(self) -> None:
        """Give up the connection, and with it the view of one moment."""
        try:
            await self._connection.close(timeout=5)
        except (OSError, TimeoutError):
            self._connection.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _authorities(self) -> list[tuple[Delegation, int]]:
        return [
            (_fields(Delegation, row), row["batch_seq"]) for row in await self._fetch(_AUTHORITIES)
        ]

    # None of these changes its argument: a caller that goes through many blocks would hold all of
    # their content.

    async def _with_commands(self, blocks: Sequence[HeldBlock]) -> list[HeldBlock]:
        found: defaultdict[int, list[HeldCommand]] = defaultdict(list)
        for row in await self._fetch(_COMMANDS, *_heights(blocks)):
            found[row["batch_seq"]].append(_command(row))
        return [block._replace(commands=found[block.header.batch_seq]) for block in blocks]

    async def _content_parts(self, blocks: Sequence[HeldBlock]) -> Iterator[Sequence[HeldBlock]]:
        """Split `blocks` by the bytes that their content takes."""
        ids = [command.command_id for block in blocks for command in block.commands]
        rows = await self._fetch(_SIZES, ids, *_heights(blocks))
        known = {row["command_id"]: int(row["size_bytes"]) for row in rows}
        sizes = [sum(known.get(held.command_id, 0) for held in block.commands) for block in blocks]
        return _parts(blocks, sizes, MAX_CONTENT_BYTES)

    async def _with_contents(self, blocks: Sequence[HeldBlock]) -> list[HeldBlock]:
        commands = [command for block in blocks for command in block.commands]
        contents = await self._contents(commands, *_heights(blocks))
        return [
            block._replace(commands=[_with_content(held, contents) for held in block.commands])
            for block in blocks
        ]

    async def _contents(
        self, commands: Iterable[HeldCommand], low: int, high: int
    ) -> dict[int, Entry | None]:
        """The content of `commands`, those of the blocks from `low` to `high`, by `command_id`."""
        ids = sorted({command.command_id for command in commands})
        events: defaultdict[int, list[Event]] = defaultdict(list)
        for row in await self._fetch(_EVENTS, ids):
            events[row["command_id"]].append(_fields(Event, row))
        contents: dict[int, Entry | None] = {
            row["command_id"]: _entry(row, events.get(row["command_id"], []))
            for row in await self._fetch(_CONTENTS, ids)
        }
        if missing := [command_id for command_id in ids if command_id not in contents]:
            for row in await self._fetch(_WHOLE_ENTRIES, missing, low, high):
                contents[row["command_id"]] = _whole_entry(row["entry"])
        return contents

    async def _fetch(self, query: str, *values: object) -> "list[asyncpg.Record]":
        with translated("reading blocks"):
            rows: list[asyncpg.Record] = await self._connection.fetch(
                query, self._environment, *values
            )
            return rows


def _parts(
    blocks: Sequence[HeldBlock], sizes: Iterable[int], limit: int
) -> Iterator[Sequence[HeldBlock]]:
    """Split `blocks` where the sum of their `sizes` would go beyond `limit`."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > limit:
            yield blocks[start:index]
            start, total = index, 0
        total += size
    yield blocks[start:]


def _heights(blocks: Sequence[HeldBlock]) -> tuple[int, int]:
    return blocks[0].header.batch_seq, blocks[-1].header.batch_seq


def _fields(kind: type[_Part], row: Any) -> _Part:
    return kind(**{name: row[name] for name in kind.__struct_fields__})


def _block(row: Any, authority: Delegation | None) -> HeldBlock:
    return HeldBlock(
        _fields(Header, row),
        None if row["state_root"] is None else _fields(Roots, row),
        row["block_hash"],
        row["first_command_id"],
        row["last_command_id"],
        authority,
        [],
    )


def _command(row: Any) -> HeldCommand:
    return HeldCommand(
        command_id=row["command_id"],
        request_uuid=row["request_uuid"],
        command_type=row["command_type"],
        command_identity_hash=row["command_identity_hash"],
        leaf_index=row["leaf_index"],
    )


def _with_content(command: HeldCommand, contents: Mapping[int, Entry | None]) -> HeldCommand:
    return replace(command, content=contents.get(command.command_id))


def _entry(row: Any, events: list[Event]) -> Entry:
    sent = row["command_identity_hash"]
    return Entry(
        request_uuid=row["request_uuid"],
        received_ts_ms=row["received_ts_ms"],
        command_type=row["command_type"],
        command_data=row["command_data"],
        events=events,
        command_identity_hash=None if sent is None else Hash32(sent),
    )


def _whole_entry(body: bytes) -> Entry | None:
    try:
        return _entry_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
