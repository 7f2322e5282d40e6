"""Replication dies and Postgres goes away, again and again; ingest does not notice."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import psutil
import pytest

from app.replication import migrations
from tests.support.database import value
from tests.support.ends import await_ends
from tests.support.feed_audit import Feed, assert_exactly_once, read_acks
from tests.support.http_entries import checkpoint, flush, metric
from tests.support.own_postgres import OwnPostgres
from tests.support.postgres_proxy import ThreadedProxy, proxied
from tests.support.replay_process import ReplayProcess
from tests.support.service import Service
from tests.support.table_audit import assert_progress_is_of_one_transaction_with_its_rows
from tests.support.waiting import wait_for

LIVES = 5
KILLS_A_LIFE = 4
CRASHES = 6
# In mid-COPY; before Postgres has the COMMIT; after it has committed, before it could say so.
CUTS: Final[list[Callable[[ThreadedProxy], None]]] = [
    lambda proxy: proxy.drop_after(b'COPY "engine_events"'),
    lambda proxy: proxy.drop_before(b"COMMIT"),
    lambda proxy: proxy.drop_after(b"COMMIT"),
]
PREFIX = 21_000

_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'journal-replication' AND datname = current_database()
    AND xact_start IS NOT NULL
"""


def assert_unnoticed(service: Service, replay: ReplayProcess, entries: int) -> None:
    """No request failed, none was refused, and the writer never asked for patience."""
    summary = replay.summary()
    assert summary["entries"] == entries
    assert summary["retries"] == 0, replay.output
    with service.client() as client:
        assert metric(client, "ht_journal_rejected_total") == 0


def assert_replicated_once(
    service: Service, replay: ReplayProcess, feed: Feed, database_url: str
) -> None:
    """All of it, in order of the log; and no record was ever sent to Postgres after its commit."""
    acks = read_acks(replay.acks_path)
    assert_exactly_once(feed, acks, service.data_dir / "wal", database_url)
    assert_progress_is_of_one_transaction_with_its_rows(database_url)
    assert "left out" not in service.log, "a record was replicated again"


def await_acks(replay: ReplayProcess, count: int) -> None:
    wait_for(lambda: replay.acknowledged() >= count, f"{count} acknowledgements", 120)


def is_streaming(service: Service) -> Callable[[], bool]:
    def ask() -> bool:
        with service.client() as client:
            return str(checkpoint(client)["replication"]) in ("streaming", "catching_up")

    return ask


@pytest.mark.timeout(600)
def test_ingest_does_not_notice_that_replication_is_killed_and_nothing_is_replicated_twice(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    # Several lives of the service, since it backs off further with every death of the process.
    total = min(PREFIX, len(feed.entries))
    with Service(tmp_path / "data", database_url, AUTO_MIGRATE="false") as service:
        done = 0
        for life in range(1, LIVES + 1):
            limit = total * life // LIVES
            service.start()
            with ReplayProcess(
                service.url, feed.path, tmp_path, "--batch", "20", "--limit", str(limit)
            ) as replay:
                for point in sorted(rng.sample(range(done + 1, limit - 1000), KILLS_A_LIFE)):
                    await_acks(replay, point)
                    _kill_replication(service, database_url, rng)
                    replay.pause()
                    wait_for(lambda: service.replication_pid, "replication is started again")
                    if rng.random() < 0.5:
                        wait_for(is_streaming(service), "replication works again")
                    replay.resume()
                assert_unnoticed(service, replay, limit)
            done = limit
            with service.client() as client:
                flush(client, 60)
            assert service.terminate() == 0
        assert service.log.count("the replication process ended with status -9") >= 20
        assert_replicated_once(service, replay, feed.prefix(total), database_url)


def _kill_replication(service: Service, database_url: str, rng: Random) -> None:
    """At once, or in the middle of a transaction."""
    process = psutil.Process(service.replication_pid)
    if rng.random() < 0.5 and is_streaming(service)():
        wait_for(
            lambda: bool(value(database_url, _IN_TRANSACTION)),
            "replication is in a transaction",
            interval_s=0.0002,
        )
    process.kill()
    await_ends([process], 10)


@pytest.mark.timeout(600)
def test_ingest_does_not_notice_that_postgres_crashes_and_nothing_is_replicated_twice(
    tmp_path: Path, feed: Feed, rng: Random
) -> None:
    total = min(PREFIX, len(feed.entries))
    with OwnPostgres() as postgres:
        migrations.upgrade(postgres.url)
        with Service(tmp_path / "data", postgres.url, AUTO_MIGRATE="false") as service:
            service.start()
            with ReplayProcess(
                service.url, feed.path, tmp_path, "--batch", "20", "--limit", str(total)
            ) as replay:
                for point in sorted(rng.sample(range(1, total * 3 // 4), CRASHES)):
                    await_acks(replay, point)
                    postgres.crash()
                    # Ingest goes on without it.
                    await_acks(replay, min(total, replay.acknowledged() + rng.randrange(20, 400)))
                    replay.pause()
                    postgres.start()
                    wait_for(is_streaming(service), "replication works again")
                    replay.resume()
                assert_unnoticed(service, replay, total)
            with service.client() as client:
                flush(client, 60)
            assert_replicated_once(service, replay, feed.prefix(total), postgres.url)
            assert service.terminate() == 0


def test_ingest_does_not_notice_that_postgres_hangs(
    tmp_path: Path, database_url: str, feed: Feed
) -> None:
    total = 4000
    with (
        proxied(database_url, tmp_path) as proxy,
        Service(tmp_path / "data", proxy.url, AUTO_MIGRATE="false") as service,
    ):
        service.start()
        wait_for(is_streaming(service), "replication works")
        with ReplayProcess(
            service.url, feed.path, tmp_path, "--batch", "10", "--limit", str(total)
        ) as replay:
            await_acks(replay, total // 4)
            proxy.hold()
            assert_unnoticed(service, replay, total)
            with service.client() as client:
                assert client.get("/readyz").status_code == 200
                assert checkpoint(client)["unreplicated_bytes"] > 0
                assert client.post("/flush", params={"timeout_s": 0.2}).status_code == 504
                proxy.release()
                assert flush(client)["unreplicated_bytes"] == 0
        assert_replicated_once(service, replay, feed.prefix(total), database_url)


def test_ingest_does_not_notice_that_the_way_to_postgres_is_slow(
    tmp_path: Path, database_url: str, feed: Feed
) -> None:
    """First every packet is late, then few bytes come through at a time."""
    with (
        proxied(database_url, tmp_path) as proxy,
        Service(tmp_path / "data", proxy.url, AUTO_MIGRATE="false") as service,
    ):
        service.start()
        wait_for(is_streaming(service), "replication works")
        for total, piece_bytes, pause_s in ((1000, 1 << 16, 0.25), (2000, 500, 0.002)):
            proxy.slow_down(piece_bytes, pause_s)
            with ReplayProcess(
                service.url, feed.path, tmp_path, "--batch", "10", "--limit", str(total)
            ) as replay:
                assert_unnoticed(service, replay, total)
            with service.client() as client:
                assert checkpoint(client)["unreplicated_bytes"] > 0
                assert flush(client)["unreplicated_bytes"] == 0
        assert "replication is down" not in service.log
        assert_replicated_once(service, replay, feed.prefix(total), database_url)


def test_a_connection_cut_in_mid_transaction_or_in_mid_commit_replicates_nothing_twice(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    total = 6000
    with (
        proxied(database_url, tmp_path) as proxy,
        Service(tmp_path / "data", proxy.url, AUTO_MIGRATE="false") as service,
    ):
        service.start()
        with ReplayProcess(
            service.url, feed.path, tmp_path, "--batch", "10", "--limit", str(total)
        ) as replay:
            for number, point in enumerate(
                sorted(rng.sample(range(1, total - 600), 2 * len(CUTS)))
            ):
                replay.resume()
                await_acks(replay, point)
                before = _losses(service)
                CUTS[number % len(CUTS)](proxy)
                _await_loss(service, before)
                replay.pause()
                wait_for(is_streaming(service), "replication works again")
            replay.resume()
            assert_unnoticed(service, replay, total)
        with service.client() as client:
            flush(client)
        assert_replicated_once(service, replay, feed.prefix(total), database_url)


def _await_loss(service: Service, before: int) -> None:
    wait_for(lambda: _losses(service) > before, "the cut is noticed")


def _losses(service: Service) -> int:
    return service.log.count("replication is down, retrying")


@pytest.mark.parametrize("stops", [("kill", "kill"), ("kill", "terminate")])
def test_what_was_acknowledged_before_postgres_was_ever_reached_is_replicated_later(
    tmp_path: Path, database_url: str, feed: Feed, stops: tuple[str, str]
) -> None:
    nowhere = f"postgresql:///postgres?host={tmp_path}"
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", ALLOW_NEW_WAL="true"
    ) as service:
        # The second life recovers the first one's log, and may write a checkpoint of its own.
        for limit, stop in zip((500, 1000), stops, strict=True):
            service.start(DATABASE_URL=nowhere, SHUTDOWN_TIMEOUT_S=0.5)
            with ReplayProcess(service.url, feed.path, tmp_path, "--limit", str(limit)) as replay:
                assert replay.summary()["retries"] == 0
            getattr(service, stop)()
        service.start()
        with service.client() as client:
            flush(client)
        assert_replicated_once(service, replay, feed.prefix(1000), database_url)
