"""What is read of the blocks in Postgres is enough to derive every block again."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import asyncpg
import msgpack
import pytest
from msgspec.structs import replace

from app.chain.header import Roots, block_hash, command_identity
from app.chain.pipeline import first_difference
from app.errors import DatabaseUnavailable
from app.model.entry import Entry, Hash32
from app.replication import migrations
from app.replication.block_reader import (
    MAX_COMMANDS,
    MAX_CONTENT_BYTES,
    BlockReader,
    BlockReference,
    HeldBlock,
)
from app.replication.postgres import Sink
from app.replication.reader import Reader
from app.replication.rows import Progress
from app.wal.record import Batch
from tests.support.block_chain import BlockChain, make_delegation
from tests.support.http_entries import msgpack_entry
from tests.support.journal_entries import make_entry, make_event, make_full_entry
from tests.support.nesting import nested_entry

ENVIRONMENT = "testing"
BEGINNING = Progress(wal_id="wal-1")


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[Sink]:
    connected = await Sink.connect(database_url, ENVIRONMENT)
    yield connected
    await connected.close()


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[BlockReader]:
    async with await BlockReader.connect(database_url, ENVIRONMENT) as opened:
        yield opened


@pytest.fixture
def chain() -> BlockChain:
    return BlockChain()


def tick(**fields: Any) -> Entry:
    return make_entry(**{"command_type": "TickSnapshot", "events": [make_event()], **fields})


async def apply(sink: Sink, *batches: Batch, after: Progress = BEGINNING) -> Progress:
    return await sink.apply(batches, after.wal_offset + 10, after)


async def read(reader: BlockReader, start: int = 0, *, content: bool = True) -> list[HeldBlock]:
    return [block async for block in reader.blocks(start, content=content)]


def expect_derivable(blocks: list[HeldBlock], batches: list[Batch]) -> None:
    """`blocks` are those of `batches`, and their contents alone give their hashes again."""
    derived = BlockChain()
    made = [batch for batch in batches if batch.header is not None]
    for block, batch in zip(blocks, made, strict=True):
        assert (block.header, block.roots) == (batch.header, batch.roots)
        assert block.block_hash == block_hash(block.header)
        entries = [command.content for command in block.commands if command.content is not None]
        for command, entry in zip(block.commands, entries, strict=True):
            assert command.command_identity_hash == command_identity(entry)
            assert command.request_uuid == entry.request_uuid
        leaves = [command.leaf_index for command in block.commands]
        assert leaves == [*range(block.header.first_seq, derived.state.first_seq + len(leaves))]
        prepared = derived.next_block(entries, block.header.timestamp, block.header.signer)
        assert isinstance(block.roots, Roots)
        assert first_difference(prepared, block.header, block.roots) is None
        assert batch.block_indices is not None
        ids = [batch.first_command_id + index for index in batch.block_indices]
        assert [command.command_id for command in block.commands] == ids
        assert (block.first_command_id, block.last_command_id) == (ids[0], ids[-1])


async def test_every_kind_of_entry_comes_back_so_that_its_block_can_be_derived(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    """Also a dead letter, and one whose `request_uuid` was journaled before."""
    first = make_full_entry()
    again = tick(request_uuid=first.request_uuid, command_data=b"\x01other")
    batches = [
        chain.batch(first, make_entry(), tick(), authority=make_delegation()),
        chain.batch(make_entry()),
        chain.batch(tick(command_identity_hash=Hash32(bytes(32)), events=[])),
        chain.batch(tick(events=[make_event("a\0b"), make_event()]), again, tick()),
        chain.batch(
            tick(
                events=[
                    make_event("größe", event_key="", event_data=bytes(range(256))),
                    make_event(event_key=None, l2_sequence=-(2**63)),
                    make_event(l2_sequence=2**63 - 1, event_data=b""),
                ]
            ),
        ),
    ]
    await apply(sink, *batches)
    blocks = await read(reader)
    expect_derivable(blocks, batches)
    assert [block.authority for block in blocks] == [make_delegation(), None, None, None]
    (content,) = (command.content for command in blocks[1].commands)
    assert content is not None
    assert content.command_identity_hash == bytes(32)
    assert content.events == []


async def test_without_content_only_what_blocks_say_is_read(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    entries = [tick(), tick()]
    await apply(sink, chain.batch(*entries))
    (block,) = await read(reader, content=False)
    assert [command.content for command in block.commands] == [None, None]
    assert [command.request_uuid for command in block.commands] == [e.request_uuid for e in entries]
    assert {command.command_type for command in block.commands} == {"TickSnapshot"}


@pytest.mark.parametrize("start", [0, 3, 5, 9])
async def test_blocks_from_a_height(
    sink: Sink, chain: BlockChain, reader: BlockReader, start: int
) -> None:
    await apply(sink, *(chain.batch(tick()) for _ in range(5)))
    heights = [block.header.batch_seq for block in await read(reader, start)]
    assert heights == [*range(start, 5)]


async def test_long_chains_come_in_order_and_whole(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    """Past the rows of one look, and with blocks larger than one look may be."""
    sizes = [1] * 300 + [MAX_COMMANDS + 1, 1, MAX_COMMANDS, 1] + [700] * 4
    batches = [chain.batch(*(tick() for _ in range(size))) for size in sizes]
    await apply(sink, *batches)
    expect_derivable(await read(reader), batches)


async def test_memory_is_bounded_by_bytes_not_by_blocks(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    progress = BEGINNING
    for number in range(40):
        large = make_event(event_data=bytes([number]) * (1 << 20))
        batch = chain.batch(tick(command_data=b"\1" * (1 << 20), events=[large]))
        progress = await apply(sink, batch, after=progress)
    tracemalloc.start()
    try:
        count = 0
        async for block in reader.blocks(content=True):
            count += block.header.command_count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 40
    # What is held of one look while the next comes in, and the driver's own buffers.
    assert peak < 4 * MAX_CONTENT_BYTES


async def test_all_is_read_as_of_one_moment(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    progress = await apply(
        sink, *(chain.batch(tick(), authority=make_delegation(n)) for n in (1, 2))
    )
    newest = await reader.newest_block()
    await apply(sink, chain.batch(tick(), authority=make_delegation(3)), after=progress)
    assert newest == await reader.newest_block()
    assert len(await read(reader)) == 2
    assert len(await reader.authorities()) == 2


async def test_blocks_that_arrive_while_reading_are_not_read(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    progress = await apply(sink, *(chain.batch(tick()) for _ in range(300)))
    heights: list[int] = []
    async with aclosing(reader.blocks(content=True)) as blocks:
        async for block in blocks:
            if not heights:
                await apply(sink, chain.batch(tick()), after=progress)
            heights.append(block.header.batch_seq)
    assert heights == [*range(300)]


async def test_authorities_are_the_newest_first(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    delegations = [make_delegation(n, delegate=bytes([n]) * 20) for n in (4, 9, 2)]
    await apply(sink, *(chain.batch(tick(), authority=held) for held in delegations))
    assert await reader.authorities() == delegations[::-1]


async def test_the_commands_of_a_large_block_are_all_read_alone_as_with_other_blocks(
    sink: Sink, chain: BlockChain, reader: BlockReader
) -> None:
    """One block's are read a few at a time, and one of these is a repeated entry kept whole."""
    again = tick()
    entries = [tick() for _ in range(700)]
    await apply(sink, chain.batch(tick(), again), chain.batch(*entries, again), chain.batch(tick()))
    (_, block, _) = await read(reader)
    assert len(block.commands) == len(entries) + 1
    assert await reader.commands(1, content=True) == block.commands
    without = [replace(command, content=None) for command in block.commands]
    assert await reader.commands(1) == without


async def test_the_newest_block_is_the_highest(
    sink: Sink, chain: BlockChain, database_url: str
) -> None:
    async with Reader(database_url, ENVIRONMENT) as reader:
        assert await reader.newest_block() is None
        batches = [chain.batch(tick()) for _ in range(3)]
        await apply(sink, *batches)
        header = batches[-1].header
        assert header is not None
        assert await reader.newest_block() == BlockReference(2, block_hash(header))
    async with Reader(database_url, "another") as other:
        assert await other.newest_block() is None
        assert await other.block_commands(0) == []


async def test_commands_of_a_block_with_what_was_journaled(
    sink: Sink, chain: BlockChain, database_url: str
) -> None:
    entries = [tick(), tick(events=[make_event("\0")]), tick(events=[make_event(), make_event()])]
    await apply(sink, chain.batch(tick()), chain.batch(make_entry(), *entries))
    async with Reader(database_url, ENVIRONMENT) as reader:
        commands = await reader.block_commands(1)
        assert await reader.block_commands(2) == []
    assert [command.leaf_index for command in commands] == [1, 2, 3]
    assert [command.command_id for command in commands] == [3, 4, 5]
    for command, entry in zip(commands, entries, strict=True):
        assert command.content is not None
        assert command.content.command_data == entry.command_data
        assert command.content.events == entry.events


async def test_what_is_missing_is_handed_on_as_missing(
    sink: Sink, chain: BlockChain, reader: BlockReader, observer: Any
) -> None:
    await apply(sink, *(chain.batch(tick(), tick()) for _ in range(3)))
    await observer.execute("DELETE FROM rsm_roots WHERE batch_seq = 0")
    await observer.execute("DELETE FROM rsm_block_commands WHERE leaf_index = 2")
    await observer.execute("DELETE FROM engine_commands WHERE command_id = 6")
    blocks = await read(reader)
    assert [block.roots is None for block in blocks] == [True, False, False]
    assert [len(block.commands) for block in blocks] == [2, 1, 2]
    assert [command.content is None for command in blocks[2].commands] == [False, True]


@pytest.mark.parametrize(
    "entry",
    [
        b"\xc1",
        msgpack.packb(msgpack_entry(command_type="MARK")).replace(b"MARK", b"\xff\xfe\xfd\xfc"),
        nested_entry(200_000),
    ],
    ids=["not MessagePack", "text that is no UTF-8", "nested too deeply"],
)
async def test_a_dead_letter_that_does_not_decode_has_no_content(
    sink: Sink, chain: BlockChain, reader: BlockReader, observer: Any, entry: bytes
) -> None:
    await apply(sink, chain.batch(tick(events=[make_event("\0")])))
    await observer.execute("UPDATE dead_letters SET entry = $1", entry)
    (block,) = await read(reader)
    assert [command.content for command in block.commands] == [None]


async def test_changed_rows_are_read_as_they_are(
    sink: Sink, chain: BlockChain, reader: BlockReader, observer: Any
) -> None:
    """So that whoever checks can name what differs."""
    batch = chain.batch(tick())
    await apply(sink, batch)
    other = uuid4()
    await observer.execute("UPDATE rsm_blocks SET timestamp = 1, command_count = 2")
    await observer.execute("UPDATE engine_events SET event_data = 'x'")
    await observer.execute("UPDATE engine_commands SET request_uuid = $1", other)
    (block,) = await read(reader)
    assert batch.header is not None
    assert block.header == replace(batch.header, timestamp=1, command_count=2)
    (command,) = block.commands
    assert command.content is not None
    assert command.content.events[0].event_data == b"x"
    assert command.content.request_uuid == other != command.request_uuid


async def test_a_schema_older_than_blocks_has_none_and_can_not_be_read(
    empty_database_url: str,
) -> None:
    await asyncio.to_thread(migrations.upgrade, empty_database_url, "0001")
    async with Reader(empty_database_url, ENVIRONMENT) as reader:
        assert await reader.newest_block() is None
    async with await BlockReader.connect(empty_database_url, ENVIRONMENT) as blocks:
        assert await blocks.newest_block() is None
        with pytest.raises(DatabaseUnavailable, match="signing_authorities"):
            await read(blocks)


async def test_a_lost_connection_is_unavailable(
    sink: Sink, chain: BlockChain, reader: BlockReader, observer: Any
) -> None:
    await apply(sink, chain.batch(tick()))
    assert await reader.newest_block() is not None
    await observer.execute(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'journal-blocks' AND datname = current_database()"
    )
    with pytest.raises(DatabaseUnavailable, match="reading blocks"):
        await read(reader)
