"""The service is killed with SIGKILL, again and again, while a whole feed is replayed into it."""

from pathlib import Path
from random import Random

import psutil
import pytest

from tests.support.ends import await_ends
from tests.support.feed_audit import (
    Feed,
    assert_exactly_once,
    assert_in_order,
    read_acks,
    read_kept_from,
)
from tests.support.http_entries import flush
from tests.support.kill_moments import (
    Moment,
    await_growth,
    await_recovery,
    moments,
    quiet_port,
)
from tests.support.replay_process import ReplayProcess
from tests.support.service import Service
from tests.support.table_audit import progress_of
from tests.support.waiting import wait_for

# With the kills in recoveries: 20. Of the worker alone: half as many.
KILLS = 16
WORKER_KILLS = 10
RECOVERY_ATTEMPTS = 10
SEGMENT_BYTES = 256 * 1024


def kill_points(rng: Random, total: int, count: int) -> list[int]:
    """How many entries are to be acknowledged before each kill; all well before the end."""
    return sorted(rng.sample(range(1, total * 19 // 20), count))


def await_point(replay: ReplayProcess, point: int) -> None:
    wait_for(lambda: replay.acknowledged() >= point, f"{point} acknowledgements", 120)
    assert replay.is_running, "the replay ended before the last kill"


def kill_in_recovery(service: Service, rng: Random) -> None:
    """Start the service and kill it before it is ready; once more where that comes too late."""
    for _ in range(RECOVERY_ATTEMPTS):
        service.launch()
        in_time = await_recovery(service, rng)
        service.kill()
        if in_time:
            return
    raise AssertionError("the service was always ready before it was killed")


def audit(service: Service, feed: Feed, replay: ReplayProcess, url: str, in_flight: int) -> None:
    """After everything: the feed is there once, under the ids that were acknowledged."""
    summary = replay.summary()
    assert summary["entries"] == len(feed.entries)
    with service.client() as client:
        checkpoint = flush(client, 60)
        assert client.get("/readyz").status_code == 200
    kept_from = read_kept_from(service.data_dir)
    assert "Traceback" not in service.log
    acks = read_acks(replay.acks_path)
    assert_exactly_once(feed, acks, service.data_dir / "wal", url, kept_from)
    assert_in_order(feed, acks, 100, in_flight)
    highest = max(event.l2_sequence or 0 for entry in feed.entries for event in entry.events)
    newest = max(ack.command_id for ack in acks)
    found = (checkpoint["wal_id"], checkpoint["durable_offset"], newest, highest)
    assert progress_of(url) == found
    assert checkpoint["wal_offset"] == checkpoint["durable_offset"]
    assert service.terminate() == 0


@pytest.mark.timeout(600)
def test_the_whole_feed_survives_kills_of_the_whole_service(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    points = kill_points(rng, len(feed.entries), KILLS)
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SEGMENT_BYTES=SEGMENT_BYTES
    ) as service:
        service.port = quiet_port(rng)
        service.start()
        with ReplayProcess(service.url, feed.path, tmp_path, "--in-flight", "8") as replay:
            for point, moment in zip(points, moments(rng, KILLS), strict=True):
                await_point(replay, point)
                await_growth(service, moment)
                service.kill()
                if moment is Moment.RECOVERING:
                    kill_in_recovery(service, rng)
                service.start()
            audit(service, feed, replay, database_url, in_flight=8)


@pytest.mark.timeout(600)
def test_the_whole_feed_survives_kills_of_the_worker_alone_while_the_log_is_given_back(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    everything = moments(rng, 2 * WORKER_KILLS)
    kinds = [moment for moment in everything if moment is not Moment.RECOVERING][:WORKER_KILLS]
    points = kill_points(rng, len(feed.entries), len(kinds))
    # With one request in flight, what is sent again is among the newest entries: the window may
    # be short.
    with Service(
        tmp_path / "data",
        database_url,
        AUTO_MIGRATE="false",
        WAL_SEGMENT_BYTES=SEGMENT_BYTES,
        DEDUP_WINDOW=1000,
    ) as service:
        service.port = quiet_port(rng)
        service.start()
        with ReplayProcess(service.url, feed.path, tmp_path, "--in-flight", "1") as replay:
            for point, moment in zip(points, kinds, strict=True):
                await_point(replay, point)
                worker = psutil.Process(service.worker_pid)
                replication = psutil.Process(service.replication_pid)
                await_growth(service, moment)
                worker.kill()
                assert service.wait() != 0, "a service without its worker is no success"
                await_ends([replication], 5)
                service.start()
            audit(service, feed, replay, database_url, in_flight=1)
        assert read_kept_from(service.data_dir) > 10 * SEGMENT_BYTES
        assert min(path.stem for path in (service.data_dir / "wal").glob("*.wal")) > "0" * 20
