"""The wall clock of the real service jumps by days while it is used, for native code as well."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

import httpx
import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.tokens import Scope
from tests.support.bearer_tokens import TokensFile, bearing
from tests.support.clock import ShiftedClock
from tests.support.foreign_wal import read_wal
from tests.support.http_entries import accepted, decoded, flush, metric, post
from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.verification import verification, write_cold_key
from tests.support.waiting import wait_for

DAY_S: Final = 24 * 3600
SHIFTS_DAYS: Final = (0, 7, -7, 393)
SENDERS: Final = 2
MORE: Final = 3
ALL_OK: Final = {
    "wal": {"state": "ok"},
    "disk": {"state": "ok"},
    "commitments": {"state": "ok"},
    "signing": {"state": "ok"},
    "replication": {"state": "streaming"},
}


class Load:
    """Clients that go on sending, each in a conversation of its own."""

    def __init__(self, service: Service, token: str) -> None:
        self.conversations = [Conversation(size=6000) for _ in range(SENDERS)]
        self._service = service
        self._token = token
        self._stop = Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [Thread(target=self._send, args=(each,)) for each in self.conversations]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def await_more(self) -> None:
        """Wait until every client has been answered some more times."""
        wanted = [len(each.statuses) + MORE for each in self.conversations]

        def is_there() -> bool:
            counts = [len(each.statuses) for each in self.conversations]
            return all(count > least for count, least in zip(counts, wanted, strict=True))

        wait_for(is_there, "entries are acknowledged")

    def _send(self, conversation: Conversation) -> None:
        with self._service.client(headers=bearing(self._token)) as client:
            while not self._stop.is_set() and conversation.send(client) == 200:
                pass


def is_ready(client: httpx.Client) -> bool:
    response = client.get("/readyz")
    return response.status_code == 200 and decoded(response)["parts"] == ALL_OK


def day_of(ms: int, began_s: float) -> int:
    """By how many days a time that was read differs from the machine's own."""
    return round((ms / 1000 - began_s) / DAY_S)


def test_a_clock_that_jumps_by_days_under_load_changes_nothing_but_times_and_keys(
    tmp_path: Path, database_url: str
) -> None:
    clock, tokens = ShiftedClock(tmp_path), TokensFile(tmp_path / "tokens")
    engine = tokens.add("engine", Scope.ADMIN)
    guest = tokens.add("guest", Scope.READ, expires_in_s=DAY_S)
    settings = {
        "AUTO_MIGRATE": "false",
        "BLOCK_COMMANDS": "*",
        "COLD_KEY_FILE": write_cold_key(tmp_path),
        "TOKENS_FILE": tokens.path,
        "WAL_SEGMENT_BYTES": 65536,
    }
    began_s = time.time()
    with Service(tmp_path / "data", database_url, **settings) as service:
        service.wrapper = clock.wrapper
        load = Load(service.start(), engine)
        with load.running(), service.client(headers=bearing(engine)) as client:
            for shift_days in SHIFTS_DAYS:
                clock.shift(shift_days * DAY_S)
                load.await_more()
                flush(client)
                wait_for(lambda: is_ready(client), "everything is well")
                # How long something took is not told by this clock.
                assert 0 <= metric(client, "ht_journal_queue_latency_seconds_sum") < DAY_S
                # A token ends by it, and so is good again when it goes back.
                allowed = client.get("/checkpoint", headers=bearing(guest)).status_code
                assert allowed == (401 if shift_days > 1 else 200)
            unsigned = metric(client, "ht_blocks_unsigned")
            windows = client.get("/authorities").json()["authorities"]
        for conversation in load.conversations:
            assert set(conversation.statuses) == {200}
        # From a time before that of the log itself: a stop, a start, and nothing is forgotten.
        clock.shift(-30 * DAY_S)
        assert service.terminate() == 0
        service.start()
        with service.client(headers=bearing(engine)) as client:
            again = accepted(post(client, *load.conversations[0].requests[0]))
            assert len(again["duplicates"]) == again["count"]
            assert load.conversations[0].send(client) == 200
            flush(client)
        assert service.terminate() == 0
        assert "Traceback" not in service.log, service.log
    for each in load.conversations:
        others = [other for other in load.conversations if other is not each]
        check_promise(each, service.data_dir, database_url, others=others, **settings)
    # A key that was asked for right before a jump out of its window does not sign.
    assert unsigned <= len(SHIFTS_DAYS)
    assert {day_of(each["valid_from"], began_s) for each in windows} == set(SHIFTS_DAYS)
    began = [
        day_of(record.content["created_ms"], began_s)
        for record in read_wal(service.data_dir / "wal")
        if record.content["kind"] == "genesis"
    ]
    assert {*began} <= {*SHIFTS_DAYS, -30}
    assert sorted(began) != began, "the log never saw a time before one it had seen"
    for source in (service.data_dir, database_url):
        found = verification(source, "--allow-unsigned")
        assert found["status"] == 0, found
