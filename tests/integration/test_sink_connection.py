"""Each entry becomes rows exactly once, whenever the sink's connection goes."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from app.errors import DatabaseUnavailable
from app.model.entry import Entry
from app.replication.postgres import Sink
from app.replication.reader import Reader
from app.replication.rows import Progress
from tests.support.journal_entries import make_batch, make_entry, make_full_entry, make_update
from tests.support.postgres_proxy import PostgresProxy
from tests.support.replication_sink import (
    ENVIRONMENT,
    SHORT,
    WAL,
    apply,
    balances,
    connect_when_free,
    expect_rows,
    kill_sinks,
    locked_rows,
    rows,
    until_blocked,
)


async def test_a_second_sink_of_the_environment_is_turned_away(
    sink: Sink, database_url: str
) -> None:
    with pytest.raises(
        DatabaseUnavailable, match="another process replicates environment 'testing'"
    ):
        await Sink.connect(database_url, ENVIRONMENT)
    await sink.close()
    await (await Sink.connect(database_url, ENVIRONMENT)).close()


async def test_a_database_without_schema_is_turned_away(empty_database_url: str) -> None:
    with pytest.raises(
        DatabaseUnavailable, match=r"revision none.* needs 0002: run `journal migrate`"
    ):
        await Sink.connect(empty_database_url, ENVIRONMENT)


async def test_a_database_at_another_revision_is_turned_away(
    database_url: str, observer: Any
) -> None:
    await observer.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(
        DatabaseUnavailable, match=r"revision 0000.* needs 0002: run `journal migrate`"
    ):
        await Sink.connect(database_url, ENVIRONMENT)


async def test_a_killed_backend_is_unavailable_and_replication_resumes_exactly_once(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(), make_entry())
    await kill_sinks(observer)
    batch = make_batch(3, make_full_entry())
    with pytest.raises(DatabaseUnavailable):
        await sink.apply([batch], 20, progress)
    assert sink.closed

    resumed = await Sink.connect(database_url, ENVIRONMENT)
    assert await resumed.read_progress() == progress
    after = await resumed.apply([batch], 20, progress)
    assert after == await resumed.read_progress()
    await resumed.close()
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1, 2, 3]
    assert len(await rows(observer, "engine_events")) == 2


async def test_a_backend_killed_in_the_middle_of_a_transaction_leaves_nothing_of_it(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_full_entry(balance_updates=[make_update(0, 1, "2")])
    async with locked_rows(database_url, "account_balances"):
        applying = asyncio.create_task(apply(sink, update, after=progress), name="applying")
        await until_blocked(observer)
        await kill_sinks(observer)
        with pytest.raises(DatabaseUnavailable, match="terminat"):
            await applying
    assert len(await rows(observer, "engine_commands")) == 1
    assert await rows(observer, "engine_events") == []

    resumed = await Sink.connect(database_url, ENVIRONMENT)
    assert await resumed.read_progress() == progress
    await apply(resumed, update, after=progress)
    await resumed.close()
    assert (await balances(observer))[1] == (Decimal(2), 2)


async def test_a_lock_that_is_not_given_in_time_is_unavailable_not_a_dead_letter(
    database_url: str, observer: Any
) -> None:
    sink = await Sink.connect(database_url, ENVIRONMENT, limits=SHORT)
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_entry(balance_updates=[make_update(0, 1, "2")])
    async with locked_rows(database_url, "account_balances"):
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await apply(sink, update, after=progress)
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_a_cancelled_transaction_gives_the_connection_up(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_entry(balance_updates=[make_update(0, 1, "2")])
    async with locked_rows(database_url, "account_balances"):
        applying = asyncio.create_task(apply(sink, update, after=progress), name="applying")
        await until_blocked(observer)
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        assert sink.closed


async def test_a_commit_whose_answer_is_lost_is_found_in_the_progress_row(
    database_url: str, observer: Any, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        proxy.drop_after(b"COMMIT")
        with pytest.raises(DatabaseUnavailable):
            await apply(sink, make_full_entry())
    resumed = await connect_when_free(database_url)
    assert await resumed.read_progress() == Progress(
        wal_id=WAL, wal_offset=10, last_command_id=1, last_l2_seq=41
    )
    await resumed.close()
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_a_commit_that_never_reached_the_server_is_not_in_the_progress_row(
    database_url: str, observer: Any, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        progress = await apply(sink, make_full_entry())
        proxy.drop_before(b"COMMIT")
        with pytest.raises(DatabaseUnavailable):
            await apply(sink, make_full_entry(), after=progress)
    resumed = await connect_when_free(database_url)
    assert await resumed.read_progress() == progress
    await resumed.close()
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


def large_entries() -> list[Entry]:
    """More than all buffers on the way to the server take."""
    return [make_entry(command_data=bytes(1 << 20)) for _ in range(16)]


async def test_a_server_that_takes_no_more_in_mid_copy_ends_in_an_error_within_the_limits(
    database_url: str, observer: Any, tmp_path: Path
) -> None:
    """The driver itself would wait for room to send without end."""
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT, limits=SHORT)
        progress = await apply(sink, make_entry())
        proxy.hold_after(b'COPY "staged_commands"')
        async with asyncio.timeout(10):
            with pytest.raises(DatabaseUnavailable, match="timed out in the middle of copying"):
                await apply(sink, *large_entries(), after=progress)
        assert sink.closed
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_a_connection_that_is_lost_while_a_copy_waits_for_room_is_noticed_at_once(
    database_url: str, observer: Any, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        progress = await apply(sink, make_entry())
        proxy.hold_after(b'COPY "staged_commands"')
        applying = asyncio.create_task(
            apply(sink, *large_entries(), after=progress), name="applying"
        )
        await proxy.reached.wait()
        proxy.cut()
        # Well before the limit of a statement.
        async with asyncio.timeout(20):
            with pytest.raises(DatabaseUnavailable, match="connection was"):
                await applying
        assert sink.closed
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_the_kernel_watches_connections_over_which_nothing_is_sent(
    database_url: str, tmp_path: Path
) -> None:
    """As it must, to find out that a server, or the way to it, is gone without a word."""
    async with (
        PostgresProxy(database_url, tmp_path, tcp=True) as proxy,
        Reader(proxy.url, ENVIRONMENT) as reader,
    ):
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        assert await reader.progress() is None
        port = urlsplit(proxy.url).port
        connections = Path("/proc/net/tcp").read_text().splitlines()[1:]
        timers = [
            fields[5]
            for fields in map(str.split, connections)
            if fields[2].endswith(f":{port:04X}")
        ]
        assert len(timers) == 2
        for timer in timers:
            kind, due = timer.split(":")
            assert kind == "02", "no keepalive timer runs"
            # In hundredths of a second; by default it would be two hours.
            assert int(due, 16) <= 30 * 100
        await sink.close()


async def test_a_server_that_falls_silent_ends_in_an_error_within_the_limits(
    database_url: str, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT, limits=SHORT)
        progress = await apply(sink, make_entry())
        proxy.fall_silent()
        async with asyncio.timeout(5):
            with pytest.raises(DatabaseUnavailable, match="timed out"):
                await apply(sink, make_entry(), after=progress)
            with pytest.raises(DatabaseUnavailable, match=r"connecting to Postgres: .*timed out"):
                await Sink.connect(proxy.url, ENVIRONMENT, limits=SHORT)
            await sink.close()
