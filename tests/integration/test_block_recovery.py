"""Blocks are there exactly once after lost connections, lost disks and migrations."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from app.errors import DatabaseUnavailable
from app.replication import migrations
from app.replication.postgres import Sink
from app.replication.rows import Progress
from tests.support.block_chain import BlockChain, make_delegation
from tests.support.journal_entries import make_entry
from tests.support.postgres_proxy import PostgresProxy
from tests.support.replicated_blocks import apply, contents, tick
from tests.support.replication_sink import (
    BEGINNING,
    ENVIRONMENT,
    WAL,
    connect_when_free,
    kill_sinks,
    locked_rows,
    rows,
    until_blocked,
)


async def test_a_backend_killed_between_block_and_pointer_leaves_nothing_of_the_record(
    sink: Sink, chain: BlockChain, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, chain.batch(tick()))
    before = await contents(observer)
    batch = chain.batch(tick(), make_entry())
    async with locked_rows(database_url, "rsm_current_state"):
        applying = asyncio.create_task(apply(sink, batch, after=progress), name="applying")
        await until_blocked(observer)
        await kill_sinks(observer)
        with pytest.raises(DatabaseUnavailable, match="terminat"):
            await applying
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
