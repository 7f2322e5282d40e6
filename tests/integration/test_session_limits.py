"""No session of the service waits for ever in Postgres: the server itself ends it, too.

A session's settings are its own, so each one is asked from within what it does: what it reads or
writes first runs a statement of the test's instead.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest

from app.errors import DatabaseUnavailable
from app.replication import connection, migrations
from app.replication.block_reader import BLOCK_READER_LIMITS, BlockReader
from app.replication.connection import MIGRATION_LIMITS, READER_LIMITS, SINK_LIMITS, Limits
from app.replication.postgres import Sink
from app.replication.reader import Reader
from tests.support.block_service import BlockService
from tests.support.journal_entries import make_entry
from tests.support.postgres_cluster import database_name
from tests.support.replicated_blocks import tick
from tests.support.replication_sink import ENVIRONMENT, apply, expect_rows

# The driver, which would give up by itself, is far behind the server.
SHORT: Final = Limits(
    connect_s=10, statement_s=0.2, lock_s=10, idle_in_transaction_s=0.2, grace_s=60
)
TELL_LIMITS: Final = """
RAISE EXCEPTION 'limits: %', (
    SELECT string_agg(format('%s=%s', name, setting), ' ' ORDER BY name) FROM pg_settings
    WHERE name IN ('idle_in_transaction_session_timeout', 'lock_timeout', 'statement_timeout'))
"""
SLEEP: Final = "PERFORM pg_sleep(60)"
# Every statement of a session that writes to the table, or reads it, runs `statement` first.
WRITING: Final = """
CREATE FUNCTION intercepted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN {statement}; RETURN NULL; END $$;
CREATE TRIGGER intercepted BEFORE INSERT OR UPDATE ON {table} EXECUTE FUNCTION intercepted();
"""
READING: Final = """
ALTER TABLE {table} RENAME TO held;
CREATE FUNCTION intercepted() RETURNS SETOF held LANGUAGE plpgsql AS $$
BEGIN {statement}; RETURN; END $$;
CREATE VIEW {table} AS SELECT * FROM intercepted();
"""


async def replicate(url: str, limits: Limits = SINK_LIMITS) -> None:
    sink = await Sink.connect(url, ENVIRONMENT, limits=limits)
    try:
        await apply(sink, make_entry())
    finally:
        await sink.close()


async def look_up(url: str, limits: Limits = READER_LIMITS) -> None:
    async with Reader(url, ENVIRONMENT, limits=limits) as reader:
        # The pool lends the same connection again, and resets it in between.
        assert await reader.progress() is None
        await reader.command(uuid4())


async def read_blocks(url: str, limits: Limits = BLOCK_READER_LIMITS) -> None:
    async with await BlockReader.connect(url, ENVIRONMENT, limits=limits) as blocks:
        await blocks.current_state()


async def migrate(url: str, limits: Limits = MIGRATION_LIMITS) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "MIGRATION_LIMITS", limits)
        await asyncio.to_thread(migrations.downgrade, url, "0001")


class Session(NamedTuple):
    """A kind of session that the service opens, and what it does first to which table."""

    limits: Limits
    use: Callable[..., Awaitable[None]]
    doing: str
    table: str


SESSIONS: Final = [
    pytest.param(Session(SINK_LIMITS, replicate, WRITING, "engine_commands"), id="replication"),
    pytest.param(Session(READER_LIMITS, look_up, READING, "dead_letters"), id="reader"),
    pytest.param(
        Session(BLOCK_READER_LIMITS, read_blocks, READING, "rsm_current_state"), id="block reader"
    ),
    pytest.param(Session(MIGRATION_LIMITS, migrate, WRITING, "alembic_version"), id="migration"),
]


async def intercept(observer: Any, session: Session, statement: str) -> None:
    """Let the session run `statement` in place of what it does first."""
    await observer.execute(session.doing.format(table=session.table, statement=statement))


def told(error: pytest.ExceptionInfo[DatabaseUnavailable]) -> dict[str, int]:
    """The limits that a session told, in milliseconds."""
    return {
        name: int(value) for name, value in re.findall(r"(\w+_timeout)=(\d+)", str(error.value))
    }


def in_milliseconds(limits: Limits) -> dict[str, int]:
    return {
        "statement_timeout": round(limits.statement_s * 1000),
        "lock_timeout": round(limits.lock_s * 1000),
        "idle_in_transaction_session_timeout": round(limits.idle_in_transaction_s * 1000),
    }


@pytest.fixture
async def unlimited_url(database_url: str, observer: Any) -> str:
    """The test's database, whose sessions wait for ever unless they say otherwise."""
    for name in in_milliseconds(SHORT):
        await observer.execute(f'ALTER DATABASE "{database_name(database_url)}" SET {name} = 0')
    return database_url


@pytest.mark.parametrize("session", SESSIONS)
async def test_every_session_has_its_limits_whatever_the_database_says(
    unlimited_url: str, observer: Any, session: Session
) -> None:
    await intercept(observer, session, TELL_LIMITS)
    with pytest.raises(DatabaseUnavailable, match="limits: ") as raised:
        await session.use(unlimited_url)
    assert told(raised) == in_milliseconds(session.limits)


async def test_what_only_postgres_knows_of_a_block_is_read_within_the_limits_of_a_request(
    tmp_path: Path, unlimited_url: str, observer: Any
) -> None:
    session = Session(READER_LIMITS, read_blocks, READING, "rsm_block_commands")
    await intercept(observer, session, TELL_LIMITS)
    service = BlockService(tmp_path / "data", unlimited_url)
    try:
        await service.commit(tick())
        service.retained = service.store.wal_offset
        with pytest.raises(DatabaseUnavailable, match="limits: ") as raised:
            await service.view.content_of(0)
    finally:
        await service.close()
    assert told(raised) == in_milliseconds(READER_LIMITS)


async def test_blocks_that_only_postgres_knows_are_read_over_one_session(
    tmp_path: Path, unlimited_url: str, observer: Any
) -> None:
    """Verifying a whole journal asks for every block; a session each costs more than all else."""
    session = Session(READER_LIMITS, read_blocks, READING, "rsm_block_commands")
    await intercept(observer, session, "RAISE EXCEPTION 'read by %', pg_backend_pid()")
    service = BlockService(tmp_path / "data", unlimited_url)
    readers = set()
    try:
        await service.commit_all([(tick(),), (tick(),)])
        service.retained = service.store.wal_offset
        for height in (0, 1):
            with pytest.raises(DatabaseUnavailable, match="read by ") as raised:
                await service.view.content_of(height)
            readers |= set(re.findall(r"read by \d+", str(raised.value)))
    finally:
        await service.close()
    assert len(readers) == 1


@pytest.mark.parametrize("session", SESSIONS)
async def test_the_server_ends_a_statement_that_takes_longer_than_its_limit(
    unlimited_url: str, observer: Any, session: Session
) -> None:
    await intercept(observer, session, SLEEP)
    async with asyncio.timeout(20):
        with pytest.raises(DatabaseUnavailable, match="due to statement timeout"):
            await session.use(unlimited_url, SHORT)
    assert await migrations.current_revision(observer) == migrations.head_revision()


async def test_a_statement_that_was_ended_leaves_nothing_and_is_no_fault_of_the_entry(
    database_url: str, observer: Any
) -> None:
    sink = await Sink.connect(database_url, ENVIRONMENT, limits=SHORT)
    progress = await apply(sink, make_entry())
    await intercept(observer, Session(SHORT, replicate, WRITING, "engine_commands"), SLEEP)
    async with asyncio.timeout(20):
        with pytest.raises(DatabaseUnavailable, match="due to statement timeout"):
            await apply(sink, make_entry(), after=progress)
    assert sink.closed
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_the_server_ends_a_transaction_that_is_left_alone(
    database_url: str, observer: Any
) -> None:
    """Or one stuck process would hold back the vacuum of a whole database."""
    async with await BlockReader.connect(database_url, ENVIRONMENT, limits=SHORT) as blocks:
        assert await blocks.newest_block() is None
        async with asyncio.timeout(20):
            while await observer.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'journal-blocks' AND datname = current_database()"
            ):
                pass
        with pytest.raises(DatabaseUnavailable):
            await blocks.newest_block()
