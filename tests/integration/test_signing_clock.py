"""Keys of a whole service under load, by a wall clock that the test owns."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from tests.integration.conftest import MakeService
from tests.support.clock import OwnedClock
from tests.support.http_entries import accepted, decoded, flush, json_entry, metric, post
from tests.support.service import Service
from tests.support.verification import served_blocks, verification, write_cold_key
from tests.support.waiting import wait_for

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
SENDERS = 4
NOBODY = f"0x{'00' * 20}"


class Sent(NamedTuple):
    """An acknowledged request: its block, and the first and last reading it was made at."""

    height: int
    first: int
    last: int


class Load:
    """Sends block commands from several threads, and remembers when each block was made."""

    def __init__(self, service: Service, clock: OwnedClock) -> None:
        self.sent: list[Sent] = []
        self.failures: list[Exception] = []
        self._service = service
        self._clock = clock
        self._stop = Event()
        self._threads = [Thread(target=self._send, name="sender") for _ in range(SENDERS)]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def await_blocks_by_the_clock(self) -> None:
        """Wait until blocks were made by the clock as it is now."""
        now, seen = len(self._clock.readings) - 1, len(self.sent)

        def made() -> bool:
            return bool(self.failures) or any(each.first >= now for each in self.sent[seen:])

        wait_for(made, "blocks are made")
        assert not self.failures, self.failures

    def _send(self) -> None:
        readings = self._clock.readings
        try:
            with self._service.client() as client:
                while not self._stop.is_set():
                    first = len(readings) - 1
                    answer = accepted(post(client, json_entry(command_type="TickSnapshot")))
                    self.sent.append(Sent(answer["block_height"], first, len(readings) - 1))
        except Exception as error:  # noqa: BLE001 - the test's own thread tells
            self.failures.append(error)


@pytest.fixture
def clock(tmp_path: Path) -> OwnedClock:
    return OwnedClock(tmp_path / "clock", START_MS)


@pytest.fixture
def service(make_service: MakeService, tmp_path: Path, clock: OwnedClock) -> Service:
    service = make_service(COLD_KEY_FILE=write_cold_key(tmp_path))
    service.wrapper = clock.wrapper
    return service.start()


@pytest.mark.parametrize(
    ("moves_ms", "may_miss"),
    [
        ([DAY_MS // 2] * 6, False),
        ([DAY_MS, -DAY_MS, -DAY_MS - 1, -1, DAY_MS + 1, 400 * DAY_MS], True),
    ],
    ids=["rotation", "jumps"],
)
def test_keys_are_replaced_under_load_and_never_sign_outside_their_window(
    service: Service, clock: OwnedClock, database_url: str, moves_ms: list[int], may_miss: bool
) -> None:
    load = Load(service, clock)
    with load.running():
        load.await_blocks_by_the_clock()
        for move_ms in moves_ms:
            clock.move(move_ms)
            load.await_blocks_by_the_clock()
    with service.client() as client:
        flush(client)
        assert metric(client, "ht_journal_rejected_total") == 0
        blocks = served_blocks(client)
        windows = client.get("/authorities").json()["authorities"]
        unsigned = [block for block in blocks if block["signer"] == NOBODY]
        # A key that was asked for right before the clock jumped out of its window does not sign.
        assert len(unsigned) <= (len(moves_ms) if may_miss else 0)
        assert metric(client, "ht_blocks_unsigned") == len(unsigned)
        assert decoded(client.get("/readyz"))["parts"]["signing"] == {"state": "ok"}
    assert [window["valid_from"] for window in reversed(windows)] == clock.readings
    assert_signed_within(load.sent, blocks, windows, clock)
    for source in (service.url, service.data_dir, database_url):
        found = verification(source, *(["--allow-unsigned"] if may_miss else []))
        assert found["status"] == 0, found
        assert found["checked"]["delegations"] == len(windows)


def assert_signed_within(
    sent: list[Sent], blocks: list[dict[str, Any]], windows: list[Any], clock: OwnedClock
) -> None:
    """The window of each block's signer was open at some time at which the block can be made."""
    by_signer = {window["delegate"]: window for window in windows}
    assert len(by_signer) == len(windows)
    for each in sent:
        signer = blocks[each.height]["signer"]
        if signer == NOBODY:
            continue
        window = by_signer[signer]
        assert window["valid_until"] - window["valid_from"] == DAY_MS
        assert any(
            window["valid_from"] <= now <= window["valid_until"]
            for now in clock.readings[each.first : each.last + 1]
        ), (each, window)


def test_without_a_window_that_can_be_written_blocks_are_unsigned_counted_and_told(
    service: Service, clock: OwnedClock
) -> None:
    numbers = count()
    with service.client() as client:

        def made() -> dict[str, Any]:
            answer = accepted(post(client, json_entry(command_type="TickSnapshot")))
            assert answer["block_height"] == next(numbers)
            block: dict[str, Any] = client.get("/blocks/latest").json()
            return block

        assert made()["signature"] != "0x"
        clock.move(-START_MS - 1)
        for _ in range(2):
            block = made()
            assert (block["signer"], block["signature"]) == (NOBODY, "0x")
        assert metric(client, "ht_blocks_unsigned") == 2
        response = client.get("/readyz")
        assert response.status_code == 200
        assert decoded(response)["parts"]["signing"]["state"] == "degraded"
        clock.move(START_MS + 1)
        assert made()["signer"] != NOBODY
        assert decoded(client.get("/readyz"))["parts"]["signing"]["state"] == "ok"
    assert verification(service.data_dir)["status"] == 1
    assert verification(service.data_dir, "--allow-unsigned")["status"] == 0
