"""The worker's questions to Postgres are answered or fail in time, and survive lost connections."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from app.errors import DatabaseUnavailable
from app.replication.connection import Limits
from app.replication.postgres import Sink
from app.replication.reader import EnvironmentSummary, Reader, ReplicatedCommand
from app.replication.rows import Progress
from tests.support.journal_entries import make_batch, make_entry, make_event
from tests.support.postgres_proxy import PostgresProxy

ENVIRONMENT = "testing"
BEGINNING = Progress(wal_id="wal-1")
SHORT = Limits(connect_s=0.5, statement_s=0.4, lock_s=0.2, idle_in_transaction_s=5, grace_s=0.1)


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[Sink]:
    connected = await Sink.connect(database_url, ENVIRONMENT)
    yield connected
    await connected.close()


@pytest.fixture
async def reader(database_url: str) -> AsyncIterator[Reader]:
    async with Reader(database_url, ENVIRONMENT) as opened:
        yield opened


async def test_a_request_uuid_leads_to_its_command_or_dead_letter(
    sink: Sink, reader: Reader
) -> None:
    fine, poison = make_entry(), make_entry(events=[make_event("\0")])
    await sink.apply([make_batch(7, fine, poison)], 10, BEGINNING)
    assert await reader.command(fine.request_uuid) == ReplicatedCommand(7, dead_letter=False)
    assert await reader.command(poison.request_uuid) == ReplicatedCommand(8, dead_letter=True)
    assert await reader.command(uuid4()) is None


async def test_another_environment_is_not_seen(sink: Sink, database_url: str) -> None:
    entry = make_entry()
    await sink.apply([make_batch(1, entry)], 10, BEGINNING)
    async with Reader(database_url, "another") as other:
        assert await other.command(entry.request_uuid) is None
        assert await other.progress() is None
        assert await other.environment_summary() == EnvironmentSummary()


async def test_summary_and_progress_say_what_is_there(sink: Sink, reader: Reader) -> None:
    assert not (await reader.environment_summary()).used
    batch = make_batch(3, make_entry(), make_entry(), make_entry(events=[make_event("\0")]))
    progress = await sink.apply([batch], 10, BEGINNING)
    assert await reader.progress() == progress
    summary = await reader.environment_summary()
    assert summary == EnvironmentSummary(2, 1, 5, progress)
    assert summary.used


async def test_an_adopted_environment_counts_as_used(sink: Sink, reader: Reader) -> None:
    await sink.adopt("wal-1")
    assert (await reader.environment_summary()).used


async def test_a_database_without_schema_holds_nothing(empty_database_url: str) -> None:
    async with Reader(empty_database_url, ENVIRONMENT) as reader:
        assert await reader.environment_summary() == EnvironmentSummary()
        assert await reader.progress() is None
        with pytest.raises(DatabaseUnavailable, match="engine_commands"):
            await reader.command(uuid4())


async def test_it_connects_anew_after_its_connections_were_killed(
    reader: Reader, database_url: str
) -> None:
    assert await reader.command(uuid4()) is None
    connection = await asyncpg.connect(database_url)
    killed = await connection.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'journal-reader' AND datname = current_database()"
    )
    await connection.close()
    assert killed
    async with asyncio.timeout(20):
        while True:
            try:
                assert await reader.command(uuid4()) is None
            except DatabaseUnavailable:
                continue
            break


async def test_many_questions_at_once_are_answered(reader: Reader) -> None:
    answers = await asyncio.gather(*(reader.command(uuid4()) for _ in range(50)))
    assert answers == [None] * 50


async def test_a_server_that_falls_silent_is_unavailable_within_the_limits(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        PostgresProxy(database_url, tmp_path) as proxy,
        Reader(proxy.url, ENVIRONMENT, limits=SHORT) as reader,
    ):
        assert await reader.progress() is None
        proxy.fall_silent()
        async with asyncio.timeout(10):
            for _ in range(3):
                with pytest.raises(DatabaseUnavailable):
                    await reader.progress()


async def test_no_server_is_unavailable(tmp_path: Path) -> None:
    async with Reader(f"postgresql:///x?host={tmp_path}", ENVIRONMENT) as reader:
        with pytest.raises(DatabaseUnavailable, match="looking up an entry"):
            await reader.command(uuid4())
