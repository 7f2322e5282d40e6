"""SIGKILL at every named fail point: no block that was acknowledged is ever another one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

import httpx
import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app import failpoints
from tests.support.http_entries import accepted, flush, msgpack_entry, post_msgpack
from tests.support.service import Service
from tests.support.verification import assert_verified_in_all_ways, served_blocks, write_cold_key
from tests.support.waiting import wait_for

IN_WORKER: Final = (
    failpoints.BLOCK_PREPARED,
    failpoints.RECORD_APPENDED,
    failpoints.RECORD_SYNCED,
    failpoints.BLOCK_APPLIED,
)
IN_REPLICATION: Final = (failpoints.BEFORE_COMMIT, failpoints.AFTER_COMMIT)
DEATH: Final = "the replication process ended with status -9"
# Of a request; the log is given back in steps of 1 MiB.
ENTRIES, DATA_BYTES, REQUESTS_A_MIB = 5, 30_000, 7
# The first request of a life may be a duplicate, which reaches no point.
MOST = 5


def body_of(number: int) -> list[dict[str, Any]]:
    """The request of a number: always the same, and one block, since it is sent alone."""
    return [
        msgpack_entry(
            request_uuid=UUID(int=number * ENTRIES + index + 1),
            received_ts_ms=number,
            command_type="CreateOrder",
            command_data=number.to_bytes(8, "big") * (DATA_BYTES // 8),
            events=[
                {"event_topic": "orders", "event_type": "Created", "event_data": bytes([index])}
            ],
        )
        for index in range(ENTRIES)
    ]


class Feed:
    """Sends one request after the other; keeps each acknowledged block as it was served then."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.sent = 0
        self.acknowledged: list[dict[str, Any]] = []

    def send(self, client: httpx.Client) -> None:
        """Send the next request, or the one whose acknowledgement was lost."""
        answer = accepted(post_msgpack(client, *body_of(self.sent)))
        assert answer["block_height"] == self.sent
        self.sent += 1
        self.acknowledged.append(client.get(f"/blocks/{answer['block_height']}").json())

    def send_some(self, count: int) -> None:
        with self.service.client() as client:
            for _ in range(count):
                self.send(client)

    def send_until_killed(self, most: int) -> None:
        """Send up to `most` requests to a service that dies on the way."""
        with self._killed():
            self.send_some(most)

    def replicate_until_killed(self, most: int) -> None:
        """The same, and let each request be replicated before the next is sent."""
        with self._killed(), self.service.client() as client:
            for _ in range(most):
                self.send(client)
                flush(client)

    def send_until_replication_is_killed(self) -> None:
        before = self.service.log.count(DEATH)
        self.send_some(2)
        wait_for(lambda: self.service.log.count(DEATH) > before, "the replication process dies")

    def assert_kept(self) -> None:
        """Every acknowledged block is what it was; of any other, there is none."""
        with self.service.client() as client:
            assert served_blocks(client)[: self.sent] == self.acknowledged

    @contextmanager
    def _killed(self) -> Iterator[None]:
        with pytest.raises(httpx.TransportError):
            yield
        assert self.service.wait() != 0


def armed(point: str) -> tuple[str, ...]:
    """What runs a service that ends at this point."""
    return ("env", f"{failpoints.VARIABLE}={point}")


def undisturbed(directory: Path, database_url: str, count: int) -> list[dict[str, Any]]:
    """The blocks of the same requests where nothing happens."""
    with Service(directory, database_url, BLOCK_COMMANDS="*", ENVIRONMENT="calm") as service:
        feed = Feed(service.start())
        feed.send_some(count)
        return feed.acknowledged


@pytest.mark.timeout(300)
def test_a_kill_at_any_point_of_a_commit_leaves_the_same_blocks(
    tmp_path: Path, database_url: str, rng: Random
) -> None:
    """Without a key, whose address would be another one in each life, down to the last hash."""
    with Service(tmp_path / "data", database_url, BLOCK_COMMANDS="*") as service:
        feed = Feed(service)
        for point in rng.sample(IN_WORKER, len(IN_WORKER)):
            service.wrapper = armed(f"{point}:{rng.randint(1, MOST - 1)}")
            service.start()
            feed.assert_kept()
            feed.send_until_killed(MOST)
        service.wrapper = ()
        service.start()
        feed.send_some(1)
        feed.assert_kept()
        expected = undisturbed(tmp_path / "calm", database_url, feed.sent)
        assert feed.acknowledged == expected


@pytest.mark.timeout(300)
def test_a_signed_chain_verifies_in_all_ways_after_kills_at_every_point(
    tmp_path: Path, database_url: str, rng: Random
) -> None:
    key = write_cold_key(tmp_path)
    with Service(
        tmp_path / "data", database_url, BLOCK_COMMANDS="*", COLD_KEY_FILE=key, DEDUP_WINDOW=100
    ) as service:
        feed = Feed(service)
        for point in rng.sample(IN_REPLICATION + IN_WORKER, 6):
            service.wrapper = armed(point)
            service.start()
            feed.assert_kept()
            if point in IN_REPLICATION:
                feed.send_until_replication_is_killed()
                service.kill()
            else:
                feed.send_until_killed(2)
        service.wrapper = ()
        service.start()
        feed.send_some(1)  # of a block that is durable, but was not acknowledged, there is no more
        with service.client() as client:
            flush(client)
        assert_verified_in_all_ways(service, database_url, ENTRIES * len(feed.acknowledged))
        assert service.terminate() == 0

        # The point behind which the log is given back: what is left of it is not the whole chain.
        service.wrapper = armed(failpoints.CHECKPOINT_WRITTEN)
        service.start(DEDUP_WINDOW=1)
        feed.replicate_until_killed(4 * REQUESTS_A_MIB)
        service.wrapper = ()
        service.start(DEDUP_WINDOW=1)
        feed.assert_kept()
        feed.send_some(1)
        with service.client() as client:
            flush(client)
