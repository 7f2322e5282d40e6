"""The service is killed with SIGKILL, again and again, while a whole feed is replayed into it."""

from pathlib import Path
from random import Random

import psutil
import pytest

from tests.support.feed_audit import Feed, assert_exactly_once, assert_in_order, read_acks
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

KILLS = 24
SEGMENT_BYTES = 256 * 1024


def kill_points(rng: Random, total: int, count: int) -> list[int]:
    """How many entries are to be acknowledged before each kill; all well before the end."""
    return sorted(rng.sample(range(1, total * 19 // 20), count))


def await_point(replay: ReplayProcess, point: int) -> None:
    wait_for(lambda: replay.acknowledged() >= point, f"{point} acknowledgements", 60)
    assert replay.is_running, "the replay ended before the last kill"


def audit(service: Service, feed: Feed, replay: ReplayProcess, url: str, in_flight: int) -> None:
    """After everything: the feed is there once, under the ids that were acknowledged."""
    summary = replay.summary()
    assert summary["entries"] == len(feed.entries)
    with service.client() as client:
        checkpoint = flush(client, 60)
        assert client.get("/readyz").status_code == 200
    acks = read_acks(replay.acks_path)
    assert_exactly_once(feed, acks, service.data_dir / "wal", url)
    assert_in_order(feed, acks, 100, in_flight)
    highest = max(event.l2_sequence or 0 for entry in feed.entries for event in entry.events)
    newest = max(ack.command_id for ack in acks)
    found = (checkpoint["wal_id"], checkpoint["durable_offset"], newest, highest)
    assert progress_of(url) == found
    assert checkpoint["wal_offset"] == checkpoint["durable_offset"]
    assert service.terminate() == 0


@pytest.mark.timeout(300)
def test_the_whole_feed_survives_kills_of_the_whole_service(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    points = kill_points(rng, len(feed.entries), KILLS)
    early = 0
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SEGMENT_BYTES=SEGMENT_BYTES
    ) as service:
        service.port = quiet_port(rng)
        service.start()
        with ReplayProcess(service.url, feed.path, tmp_path, "--in-flight", "1") as replay:
            for point, moment in zip(points, moments(rng, KILLS), strict=True):
                await_point(replay, point)
                await_growth(service, moment)
                service.kill()
                if moment is Moment.RECOVERING:
                    service.launch()
                    early += await_recovery(service, rng)
                    service.kill()
                service.start()
            audit(service, feed, replay, database_url, in_flight=1)
        assert early, "no kill fell into a recovery"
        print(f"{service.log.count('cut a torn tail')} torn tails, {early} kills while recovering")


@pytest.mark.timeout(300)
def test_the_whole_feed_survives_kills_of_the_worker_alone(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    kinds = [moment for moment in moments(rng, 2 * KILLS) if moment is not Moment.RECOVERING][:20]
    points = kill_points(rng, len(feed.entries), len(kinds))
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SEGMENT_BYTES=SEGMENT_BYTES
    ) as service:
        service.port = quiet_port(rng)
        service.start()
        with ReplayProcess(service.url, feed.path, tmp_path, "--in-flight", "8") as replay:
            for point, moment in zip(points, kinds, strict=True):
                await_point(replay, point)
                worker = psutil.Process(service.worker_pid)
                replication = psutil.Process(service.replication_pid)
                await_growth(service, moment)
                worker.kill()
                assert service.wait() != 0, "a service without its worker is no success"
                gone, _ = psutil.wait_procs([replication], 5)
                assert gone, "the replication process outlived its parent"
                service.start()
            audit(service, feed, replay, database_url, in_flight=8)
