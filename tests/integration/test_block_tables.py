"""Blocks reach Postgres in their record's transaction, and its constraints guard the chain."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace

from app.chain.header import NO_SIGNER, block_hash, command_identity
from app.errors import DatabaseUnavailable, ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import Entry, Hash32
from app.replication import migrations
from app.replication.postgres import Sink
from app.replication.rows import Progress
from app.wal.record import Batch
from tests.support.block_chain import SIGNER, BlockChain, make_delegation
from tests.support.journal_entries import make_batch, make_entry, make_event, make_full_entry
from tests.support.postgres_proxy import PostgresProxy

ENVIRONMENT = "testing"
WAL = "wal-1"
BEGINNING = Progress(wal_id=WAL)
TABLES = (
    "engine_commands",
    "engine_events",
    "rsm_blocks",
    "rsm_roots",
    "rsm_block_commands",
    "rsm_current_state",
    "signing_authorities",
    "dead_letters",
    "replication_progress",
)


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
def chain() -> BlockChain:
    return BlockChain()


def tick(**fields: Any) -> Entry:
    return make_full_entry(**{"command_identity_hash": None, **fields})


async def rows(observer: Any, name: str) -> list[dict[str, Any]]:
    found = await observer.fetch(f"SELECT * FROM {name} ORDER BY 1, 2, 3")
    return [{key: value for key, value in row.items() if key != "environment"} for row in found]


async def contents(observer: Any) -> dict[str, Any]:
    """Every row of every table, as it is."""
    return {name: await rows(observer, name) for name in TABLES}


async def apply(sink: Sink, *batches: Batch, after: Progress = BEGINNING) -> Progress:
    return await sink.apply(batches, after.wal_offset + 10, after)


async def test_every_column_of_a_block(sink: Sink, chain: BlockChain, observer: Any) -> None:
    entries = [make_entry(), tick(), make_entry(), tick(command_identity_hash=Hash32(b"\x07" * 32))]
    batch = chain.batch(*entries, authority=make_delegation())
    assert batch.header is not None
    assert batch.roots is not None
    await apply(sink, batch)

    assert await rows(observer, "rsm_blocks") == [
        {
            "batch_seq": 0,
            "block_hash": block_hash(batch.header),
            "prev_block_hash": bytes(32),
            "commands_hash": batch.header.commands_hash,
            "batch_root": batch.header.batch_root,
            "command_count": 2,
            "first_seq": 0,
            "timestamp": 1_700_000_000_000,
            "signer": SIGNER,
            "signature": batch.header.signature,
            "first_command_id": 2,
            "last_command_id": 4,
            "prev_batch_seq": None,
        }
    ]
    assert await rows(observer, "rsm_roots") == [
        {"batch_seq": 0, **msgspec.structs.asdict(batch.roots)}
    ]
    assert await rows(observer, "rsm_block_commands") == [
        {
            "batch_seq": 0,
            "leaf_index": leaf_index,
            "command_id": command_id,
            "request_uuid": entries[command_id - 1].request_uuid,
            "command_type": "TickSnapshot",
            "command_identity_hash": identity,
            "entry": None,
        }
        for leaf_index, command_id, identity in (
            (0, 2, command_identity(entries[1])),
            (1, 4, b"\x07" * 32),
        )
    ]
    (current,) = await rows(observer, "rsm_current_state")
    assert current.pop("updated_at") is not None
    assert current == {
        "batch_seq": 0,
        "block_hash": block_hash(batch.header),
        "batch_root": batch.header.batch_root,
        "state_root": batch.roots.state_root,
    }
    assert await rows(observer, "signing_authorities") == [
        {
            "delegator": b"\xc0" * 20,
            "delegate": SIGNER,
            "valid_from": 5,
            "valid_until": 1005,
            "signature": b"\x0d" * 65,
            "batch_seq": 0,
        }
    ]


async def test_blocks_of_one_and_of_several_transactions_are_one_chain(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    progress = await apply(
        sink, chain.batch(tick(), tick()), chain.batch(make_entry()), chain.batch(tick())
    )
    progress = await apply(sink, chain.batch(make_entry()), after=progress)
    await apply(sink, chain.batch(tick(), tick(), signer=NO_SIGNER), after=progress)

    blocks = await rows(observer, "rsm_blocks")
    assert [block["batch_seq"] for block in blocks] == [0, 1, 2]
    assert [block["prev_batch_seq"] for block in blocks] == [None, 0, 1]
    assert [block["first_seq"] for block in blocks] == [0, 2, 3]
    assert [(block["first_command_id"], block["last_command_id"]) for block in blocks] == [
        (1, 2),
        (4, 4),
        (6, 7),
    ]
    assert (blocks[2]["signer"], blocks[2]["signature"]) == (bytes(20), b"")
    commands = await rows(observer, "rsm_block_commands")
    assert [(row["leaf_index"], row["command_id"]) for row in commands] == [
        (0, 1),
        (1, 2),
        (2, 4),
        (3, 6),
        (4, 7),
    ]
    (current,) = await rows(observer, "rsm_current_state")
    assert (current["batch_seq"], current["block_hash"]) == (2, blocks[2]["block_hash"])


async def test_records_without_blocks_leave_the_tables_empty(sink: Sink, observer: Any) -> None:
    await apply(sink, make_batch(1, make_entry(), tick()))
    held = await contents(observer)
    assert len(held["engine_commands"]) == 2
    assert not any(held[name] for name in TABLES if name.startswith(("rsm_", "signing")))


async def test_environments_have_chains_of_their_own(
    sink: Sink, database_url: str, observer: Any
) -> None:
    batches = [BlockChain().batch(tick(), authority=make_delegation()) for _ in range(2)]
    await apply(sink, batches[0])
    other = await Sink.connect(database_url, "another")
    await apply(other, batches[1])
    await other.close()
    found = await observer.fetch("SELECT environment, batch_seq FROM rsm_blocks ORDER BY 1")
    assert [tuple(row) for row in found] == [("another", 0), (ENVIRONMENT, 0)]
    assert len(await rows(observer, "rsm_current_state")) == 2
    assert len(await rows(observer, "signing_authorities")) == 2


# Constraints, by hand-written SQL.


async def insert_block(observer: Any, height: int, prev: bytes, **fields: Any) -> None:
    values = {
        "environment": ENVIRONMENT,
        "batch_seq": height,
        "block_hash": b"\xb0" * 31 + bytes([height % 256]),
        "prev_block_hash": prev,
        "commands_hash": b"\1" * 32,
        "batch_root": b"\2" * 32,
        "command_count": 1,
        "first_seq": height,
        "timestamp": 7,
        "signer": SIGNER,
        "signature": b"\3" * 65,
        "first_command_id": 100 + height,
        "last_command_id": 100 + height,
        **fields,
    }
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await observer.execute(
        f"INSERT INTO rsm_blocks ({', '.join(values)}) VALUES ({places})", *values.values()
    )


async def chain_of_three(sink: Sink, observer: Any) -> list[bytes]:
    """Hashes of the blocks 0 to 2."""
    chain = BlockChain()
    await apply(sink, *(chain.batch(tick()) for _ in range(3)))
    return [row["block_hash"] for row in await rows(observer, "rsm_blocks")]


async def test_the_tables_take_a_block_that_goes_on(sink: Sink, observer: Any) -> None:
    hashes = await chain_of_three(sink, observer)
    await insert_block(observer, 3, hashes[2])
    await insert_block(observer, 0, bytes(32), environment="another")
    assert len(await rows(observer, "rsm_blocks")) == 5


async def test_the_tables_refuse_a_second_block_at_a_height(sink: Sink, observer: Any) -> None:
    hashes = await chain_of_three(sink, observer)
    for height, prev in ((0, bytes(32)), (1, hashes[0]), (2, hashes[1])):
        with pytest.raises(asyncpg.UniqueViolationError, match="rsm_blocks_pkey"):
            await insert_block(observer, height, prev)


async def test_the_tables_refuse_a_block_that_does_not_follow_its_predecessor(
    sink: Sink, observer: Any
) -> None:
    """Neither another hash, nor that of an older block, nor one behind a gap."""
    hashes = await chain_of_three(sink, observer)
    for height, prev in ((3, b"\xee" * 32), (3, hashes[1]), (4, hashes[2]), (3, bytes(32))):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="prev_block_hash"):
            await insert_block(observer, height, prev)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert_block(observer, 3, hashes[2], environment="another")


async def test_the_tables_refuse_a_chain_that_begins_anywhere_but_at_its_beginning(
    observer: Any,
) -> None:
    refused: list[tuple[int, bytes, dict[str, Any]]] = [
        (0, b"\1" * 32, {}),
        (0, bytes(32), {"first_seq": 1}),
        (-1, bytes(32), {"block_hash": b"\1" * 32}),
    ]
    for height, prev, fields in refused:
        with pytest.raises(asyncpg.CheckViolationError, match="beginning"):
            await insert_block(observer, height, prev, **fields)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert_block(observer, 5, bytes(32))


@pytest.mark.parametrize(
    "fields",
    [
        {"block_hash": b"\1" * 31},
        {"commands_hash": b"\1" * 33},
        {"batch_root": b""},
        {"signer": b"\1" * 19},
        {"signature": b"\1" * 64},
        {"command_count": 0},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_the_tables_refuse_what_is_no_header(observer: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match=next(iter(fields))):
        await insert_block(observer, 0, bytes(32), **fields)


async def test_the_tables_keep_the_links_that_are_there(sink: Sink, observer: Any) -> None:
    """No block leaves the middle, none gets another hash, and the newest can't be taken back."""
    await chain_of_three(sink, observer)
    for statement in (
        "DELETE FROM rsm_blocks WHERE batch_seq = 1",
        "DELETE FROM rsm_blocks WHERE batch_seq = 2",
        "UPDATE rsm_blocks SET block_hash = prev_block_hash WHERE batch_seq = 1",
        "UPDATE rsm_blocks SET prev_block_hash = block_hash WHERE batch_seq = 2",
        "UPDATE rsm_current_state SET batch_seq = 1",
    ):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await observer.execute(statement)


# What the sink does about them.


async def expect_refused(
    sink: Sink, observer: Any, batch: Batch, progress: Progress, reason: str
) -> None:
    before = await contents(observer)
    with pytest.raises(ReplicationRefused, match=reason):
        await apply(sink, batch, after=progress)
    assert sink.closed
    assert await contents(observer) == before


@pytest.mark.parametrize("beside", ["nothing", "a dead letter"])
@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"batch_seq": 1}, r'blocks 1 to 1 .* "rsm_blocks_pkey"'),
        ({"prev_block_hash": b"\xee" * 32}, r"blocks 2 to 2 .* not present in table"),
        ({"batch_seq": 3}, r"blocks 3 to 3 .* not present in table"),
        ({"batch_seq": 0, "prev_block_hash": bytes(32), "first_seq": 0}, "rsm_blocks_pkey"),
        ({"batch_seq": 0, "prev_block_hash": bytes(32)}, "beginning"),
        ({"commands_hash": b"\1" * 31}, "commands_hash"),
    ],
    ids=[
        "second at a height",
        "other predecessor",
        "gap",
        "second beginning",
        "no beginning",
        "31",
    ],
)
async def test_a_block_that_contradicts_the_chain_stops_replication(
    sink: Sink,
    chain: BlockChain,
    observer: Any,
    forged: dict[str, Any],
    reason: str,
    beside: str,
) -> None:
    """And is no dead letter, nor are its entries, whatever else the record holds."""
    progress = await apply(sink, chain.batch(tick()), chain.batch(tick()))
    others = [make_entry(events=[make_event("\0")])] if beside == "a dead letter" else []
    batch = chain.batch(tick(), *others, authority=make_delegation())
    assert batch.header is not None
    batch = replace(batch, header=replace(batch.header, **forged))
    await expect_refused(sink, observer, batch, progress, reason)


async def test_a_chain_that_does_not_begin_at_height_0_stops_replication(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    chain.batch(tick())
    await expect_refused(sink, observer, chain.batch(tick()), BEGINNING, "not present in table")


async def test_a_block_that_is_not_whole_stops_replication(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    batch = replace(chain.batch(tick()), roots=None)
    with pytest.raises(ReplicationRefused, match="not whole"):
        await apply(sink, batch)
    assert not any((await contents(observer)).values())


async def test_replaying_old_blocks_changes_nothing_and_goes_on(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    """As after the progress row was lost or went back: blocks, leaves and pointer stay."""
    batches = [chain.batch(tick(), make_entry(), authority=make_delegation()) for _ in range(3)]
    await apply(sink, *batches)
    before = await contents(observer)
    await observer.execute("DELETE FROM replication_progress")
    progress = await apply(sink, batches[0])
    after = await contents(observer)
    del before["replication_progress"], after["replication_progress"]
    assert after == before

    await apply(sink, *batches[1:], chain.batch(tick()), after=progress)
    (current,) = await rows(observer, "rsm_current_state")
    assert current["batch_seq"] == 3
    assert [row["leaf_index"] for row in await rows(observer, "rsm_block_commands")] == [0, 1, 2, 3]
    assert len(await rows(observer, "rsm_roots")) == 4
    assert len(await rows(observer, "signing_authorities")) == 1


async def test_the_current_state_never_moves_back(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    """Even where it is ahead of the blocks."""
    progress = await apply(sink, chain.batch(tick()))
    (first,) = await rows(observer, "rsm_blocks")
    ahead = b"\xb0" * 31 + b"\x09"
    await observer.execute(
        "ALTER TABLE rsm_blocks DROP CONSTRAINT "
        "rsm_blocks_environment_prev_batch_seq_prev_block_hash_fkey"
    )
    await insert_block(observer, 9, first["block_hash"])
    await observer.execute("UPDATE rsm_current_state SET batch_seq = 9, block_hash = $1", ahead)
    await apply(sink, chain.batch(tick()), after=progress)
    (current,) = await rows(observer, "rsm_current_state")
    assert (current["batch_seq"], current["block_hash"]) == (9, ahead)


async def test_a_delegation_that_comes_again_stays_as_it_came_first(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    first, later = make_delegation(), make_delegation(900)
    batches = [chain.batch(tick(), authority=held) for held in (first, first, later)]
    await apply(sink, *batches)
    found = await rows(observer, "signing_authorities")
    assert [(row["valid_from"], row["batch_seq"]) for row in found] == [(5, 0), (900, 2)]


# Entries that have no row of their own.


async def test_a_dead_letter_is_in_its_block_and_the_block_goes_in(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    entries = [tick(), tick(events=[make_event("a\0b")]), tick(), tick(events=[make_event("\0")])]
    progress = await apply(sink, chain.batch(*entries, authority=make_delegation()))
    assert progress.dead_letters == 2
    commands = await rows(observer, "rsm_block_commands")
    assert [row["command_id"] for row in commands] == [1, 2, 3, 4]
    assert [row["command_identity_hash"] for row in commands] == [*map(command_identity, entries)]
    assert [row["entry"] for row in commands] == [None] * 4
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1, 3]
    letters = await rows(observer, "dead_letters")
    assert [row["entry"] for row in letters] == [*map(canonical_bytes, (entries[1], entries[3]))]
    assert len(await rows(observer, "rsm_blocks")) == len(await rows(observer, "rsm_roots")) == 1
    assert len(await rows(observer, "rsm_current_state")) == 1
    assert len(await rows(observer, "signing_authorities")) == 1
    after = await apply(sink, chain.batch(tick()), after=progress)
    assert after.dead_letters == 2


@pytest.mark.parametrize("beside", [[], ["\0"]], ids=["alone", "beside a dead letter"])
async def test_a_repeated_entry_is_kept_whole_in_its_block(
    sink: Sink, chain: BlockChain, observer: Any, beside: list[str]
) -> None:
    """Beyond the duplicate window: its own row is ignored, but the block commits to it."""
    first = tick()
    progress = await apply(sink, chain.batch(first))
    again = tick(request_uuid=first.request_uuid, command_data=b"\x01other")
    others = [make_entry(events=[make_event(topic)]) for topic in beside]
    await apply(sink, chain.batch(tick(), again, *others), after=progress)
    commands = await rows(observer, "rsm_block_commands")
    assert [row["entry"] for row in commands] == [None, None, canonical_bytes(again)]
    assert commands[2]["command_identity_hash"] == command_identity(again)
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1, 2]


# Exactly once.


async def kill_sinks(observer: Any) -> None:
    killed = await observer.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'journal-replication' AND datname = current_database()"
    )
    assert killed


async def connect_when_free(database_url: str) -> Sink:
    """Connect once the backend before has noticed that its client is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await Sink.connect(database_url, ENVIRONMENT)
            except DatabaseUnavailable:
                continue


async def test_a_backend_killed_between_block_and_pointer_leaves_nothing_of_the_record(
    sink: Sink, chain: BlockChain, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, chain.batch(tick()))
    before = await contents(observer)
    batch = chain.batch(tick(), make_entry())
    locker = await asyncpg.connect(database_url)
    async with locker.transaction():
        await locker.execute("SELECT FROM rsm_current_state FOR UPDATE")
        applying = asyncio.create_task(apply(sink, batch, after=progress), name="applying")
        async with asyncio.timeout(20):
            while not await observer.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                " AND application_name = 'journal-replication' AND datname = current_database()"
            ):
                pass
        await kill_sinks(observer)
        with pytest.raises(DatabaseUnavailable, match="terminat"):
            await applying
    await locker.close()
    assert await contents(observer) == before

    resumed = await Sink.connect(database_url, ENVIRONMENT)
    assert await resumed.read_progress() == progress
    await apply(resumed, batch, after=progress)
    await resumed.close()
    assert [row["leaf_index"] for row in await rows(observer, "rsm_block_commands")] == [0, 1]
    assert [row["batch_seq"] for row in await rows(observer, "rsm_current_state")] == [1]


# What the sink sends, in order, when a record holds a block and a delegation.
MESSAGES = [
    b"UPDATE replication_progress",
    b"COPY",
    b"INSERT INTO engine_commands",
    b"INSERT INTO rsm_blocks",
    b'"rsm_roots"',
    b'"rsm_block_commands"',
    b"INSERT INTO signing_authorities",
    b"INSERT INTO rsm_current_state",
    b"COMMIT",
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.decode())
async def test_a_connection_lost_anywhere_in_a_transaction_leaves_each_row_once(
    database_url: str, observer: Any, tmp_path: Path, message: bytes
) -> None:
    chain = BlockChain()
    batches = [chain.batch(tick(), tick(), authority=make_delegation(n)) for n in range(2)]
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        progress = BEGINNING
        proxy.drop_after(message)
        with pytest.raises(DatabaseUnavailable):
            await apply(sink, batches[0])
    resumed = await connect_when_free(database_url)
    progress = await resumed.read_progress() or BEGINNING
    assert (progress != BEGINNING) == (message == b"COMMIT")
    rest = batches[1:] if progress.wal_offset else batches
    await apply(resumed, *rest, after=progress)
    await resumed.close()
    held = await contents(observer)
    assert [row["batch_seq"] for row in held["rsm_blocks"]] == [0, 1]
    assert [row["batch_seq"] for row in held["rsm_roots"]] == [0, 1]
    assert [row["leaf_index"] for row in held["rsm_block_commands"]] == [0, 1, 2, 3]
    assert [row["command_id"] for row in held["engine_commands"]] == [1, 2, 3, 4]
    assert [row["valid_from"] for row in held["signing_authorities"]] == [0, 1]
    assert [row["batch_seq"] for row in held["rsm_current_state"]] == [1]


# Lost disks and older databases.


async def test_an_adopted_log_goes_on_with_the_chain(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    await apply(sink, chain.batch(tick(), tick()))
    adopted = await sink.adopt("wal-2")
    assert adopted.last_command_id == 2
    await apply(sink, chain.batch(tick()), after=adopted)
    assert [row["leaf_index"] for row in await rows(observer, "rsm_block_commands")] == [0, 1, 2]


async def test_an_adopted_log_never_gives_the_id_of_a_repeated_entry_again(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    first = tick()
    await apply(sink, chain.batch(first), chain.batch(tick(request_uuid=first.request_uuid)))
    await observer.execute("DELETE FROM replication_progress")
    assert (await sink.adopt("wal-2")).last_command_id == 2


async def test_an_older_database_is_migrated_with_what_it_holds(empty_database_url: str) -> None:
    url = empty_database_url
    await asyncio.to_thread(migrations.upgrade, url, "0001")
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO engine_commands VALUES ('testing', 1, $1, 0, NULL, 'x', NULL, NULL, 0)",
        uuid4(),
    )
    await connection.execute(
        "INSERT INTO replication_progress VALUES ('testing', 'wal-1', 10, 1, NULL, 0)"
    )
    await connection.close()
    await asyncio.to_thread(migrations.upgrade, url)
    chain = BlockChain()
    chain.next_command_id = 2
    sink = await Sink.connect(url, ENVIRONMENT)
    progress = await sink.read_progress()
    assert progress == Progress(wal_id=WAL, wal_offset=10, last_command_id=1)
    await apply(sink, chain.batch(tick()), after=progress)
    await sink.close()
    await asyncio.to_thread(migrations.downgrade, url, "0001")
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT count(*) FROM engine_commands") == 2
    await connection.close()
