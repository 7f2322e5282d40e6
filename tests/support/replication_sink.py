"""A sink at work: entries given to it, the rows it writes, and what happens to its connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import asyncpg

from app.errors import DatabaseUnavailable
from app.model.entry import Entry
from app.replication.connection import Limits
from app.replication.postgres import Sink
from app.replication.rows import Progress
from tests.support.journal_entries import make_batch

ENVIRONMENT = "testing"
WAL = "wal-1"
BEGINNING = Progress(wal_id=WAL)
SHORT = Limits(connect_s=0.5, statement_s=0.4, lock_s=0.2, idle_in_transaction_s=5, grace_s=0.1)


async def apply(sink: Sink, *entries: Entry, after: Progress = BEGINNING) -> Progress:
    """Replicate one batch behind `after`, ten bytes long."""
    batch = make_batch(after.last_command_id + 1, *entries)
    return await sink.apply([batch], after.wal_offset + 10, after)


async def rows(observer: Any, name: str) -> list[dict[str, Any]]:
    """The rows of a table in order, without their environment."""
    found = await observer.fetch(f"SELECT * FROM {name} ORDER BY 1, 2, 3")
    return [{key: value for key, value in row.items() if key != "environment"} for row in found]


async def balances(observer: Any) -> dict[int, tuple[Decimal, int]]:
    """Balance and `command_id` of each wallet, by its number."""
    found = await observer.fetch("SELECT wallet, balance_after, command_id FROM account_balances")
    return {int.from_bytes(row[0], "big"): (row[1], row[2]) for row in found}


async def expect_rows(observer: Any, *, commands: int, dead_letters: int, wal_offset: int) -> None:
    assert len(await rows(observer, "engine_commands")) == commands
    assert len(await rows(observer, "dead_letters")) == dead_letters
    (row,) = await rows(observer, "replication_progress")
    assert row["wal_offset"] == wal_offset


async def kill_sinks(observer: Any) -> None:
    """End every replication backend, and wait until they are gone."""
    killed = await observer.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'journal-replication' AND datname = current_database()"
    )
    assert killed


@asynccontextmanager
async def locked_rows(database_url: str, name: str) -> AsyncIterator[None]:
    """Another transaction has locked every row of the table meanwhile."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute(f"SELECT FROM {name} FOR UPDATE")
            yield
    finally:
        await connection.close()


async def until_blocked(observer: Any) -> None:
    """Wait until the sink's backend waits for a lock."""
    async with asyncio.timeout(20):
        while not await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name = 'journal-replication' AND datname = current_database()"
        ):
            pass


async def connect_when_free(database_url: str) -> Sink:
    """Connect once the backend before has noticed that its client is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await Sink.connect(database_url, ENVIRONMENT)
            except DatabaseUnavailable:
                continue
