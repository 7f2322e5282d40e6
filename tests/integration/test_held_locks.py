"""A lock that another session holds in Postgres makes nothing wait for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg
import pytest

from app.errors import DatabaseUnavailable
from app.replication import connection, migrations
from app.replication.block_reader import BlockReader
from app.replication.reader import Reader
from tests.integration.conftest import MakeService
from tests.support.http_entries import accepted, flush, json_entry, metric, post
from tests.support.replication_sink import ENVIRONMENT, SHORT
from tests.support.waiting import wait_for


@asynccontextmanager
async def locked(database_url: str, table: str) -> AsyncIterator[None]:
    """Another session has the whole table to itself meanwhile."""
    session = await asyncpg.connect(database_url)
    try:
        async with session.transaction():
            await session.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await session.close()


async def test_readers_give_up_in_time(database_url: str) -> None:
    async with (
        locked(database_url, "engine_commands"),
        Reader(database_url, ENVIRONMENT, limits=SHORT) as reader,
    ):
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await reader.command(uuid4())
    async with (
        locked(database_url, "rsm_blocks"),
        await BlockReader.connect(database_url, ENVIRONMENT, limits=SHORT) as blocks,
    ):
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await blocks.newest_block()


async def test_a_migration_gives_up_in_time_and_changes_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MIGRATION_LIMITS", SHORT)
    async with locked(database_url, "rsm_blocks"):
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await asyncio.to_thread(migrations.downgrade, database_url, "0001")
    session = await asyncpg.connect(database_url)
    assert await migrations.current_revision(session) == migrations.head_revision()
    await session.close()


def test_replication_does_not_wait_for_ever_and_goes_on_once_the_lock_is_given_back(
    make_service: MakeService, database_url: str
) -> None:
    """Entries are acknowledged meanwhile."""
    service = make_service().start()
    with service.client() as client, asyncio.Runner() as runner:
        accepted(post(client, json_entry()))
        flush(client)
        lock = locked(database_url, "engine_commands")
        runner.run(lock.__aenter__())
        accepted(post(client, json_entry()))
        wait_for(lambda: "lock timeout" in service.log, "replication gives up waiting")
        assert metric(client, "ht_journal_replication_errors_total") > 0
        accepted(post(client, json_entry()))
        runner.run(lock.__aexit__(None, None, None))
        assert flush(client)["last_command_id"] == 3
