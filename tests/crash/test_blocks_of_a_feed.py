"""A feed replayed with every entry a block command, killed at random: the whole chain verifies."""

from pathlib import Path
from random import Random

import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from tests.support.feed_audit import Feed, assert_exactly_once, read_acks
from tests.support.http_entries import flush
from tests.support.kill_moments import await_growth, moments, quiet_port
from tests.support.replay_process import ReplayProcess
from tests.support.service import Service
from tests.support.verification import assert_verified_in_all_ways, write_cold_key
from tests.support.waiting import wait_for

ENTRIES, KILLS = 3000, 4


def await_acks(replay: ReplayProcess, count: int) -> None:
    wait_for(lambda: replay.acknowledged() >= count, f"{count} acknowledgements")


@pytest.mark.timeout(300)
def test_a_feed_that_is_killed_at_random_verifies_from_block_0_in_all_three_ways(
    tmp_path: Path, database_url: str, feed: Feed, rng: Random
) -> None:
    whole = feed.prefix(ENTRIES)
    with Service(
        tmp_path / "data",
        database_url,
        BLOCK_COMMANDS="*",
        COLD_KEY_FILE=write_cold_key(tmp_path),
        WAL_SEGMENT_BYTES=512 * 1024,
    ) as service:
        service.port = quiet_port(rng)
        service.start()
        with ReplayProcess(
            service.url, feed.path, tmp_path, "--batch", "20", "--limit", str(ENTRIES)
        ) as replay:
            points = sorted(rng.sample(range(1, ENTRIES * 9 // 10), KILLS))
            for point, moment in zip(points, moments(rng, KILLS), strict=True):
                await_acks(replay, point)
                await_growth(service, moment)
                service.kill()
                service.start()
            assert replay.summary()["entries"] == ENTRIES
        with service.client() as client:
            flush(client, 60)
        acks = read_acks(replay.acks_path)
        assert_exactly_once(whole, acks, service.data_dir / "wal", database_url)
        assert_verified_in_all_ways(service, database_url, ENTRIES)
        assert service.terminate() == 0
