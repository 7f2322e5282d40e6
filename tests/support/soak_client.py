"""A client of the soak, as a process of its own that may be killed at any moment.

`python -m tests.support.soak_client URL LEDGER SEED NAME` sends requests until SIGTERM, one after
the other. Before it sends one it writes so to its ledger, and again when it was acknowledged. What
it sends depends on SEED and NAME alone, so that the ledger needs no content. It takes no answer on
trust: what the protocol does not allow ends it with a line that says so.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from threading import Event
from typing import Any, Final, NamedTuple
from uuid import UUID

import httpx
import msgpack
import msgspec

from app.client import AppendResult
from app.model.entry import Address, BalanceUpdate, Entry
from app.model.entry import Event as EntryEvent
from tests.support.foreign_wal import plain
from tests.support.http_entries import JSON, MSGPACK
from tests.support.wire_forms import to_json

_LARGEST_REQUEST: Final = 10
_PAUSE_S: Final = 0.1
_RETRY_S: Final = 0.1
_RETRIABLE: Final = (429, 503, 507)


class Sent(NamedTuple):
    """A request of a ledger: the numbers of its entries, and the first `command_id` once acked."""

    first: int
    entries: int
    command_ids: list[int]


def entry_of(seed: int, name: str, number: int) -> Entry:
    """The entry that the client `name` sends as its `number`th."""
    rng = Random(f"{seed}/{name}/{number}")
    events = [
        EntryEvent(
            event_topic=rng.choice(("fills", "books")),
            event_data=rng.randbytes(rng.randrange(200)),
            event_type="Happened",
        )
        for _ in range(rng.randrange(3))
    ]
    balance = BalanceUpdate(
        balance_update_seq=number,
        wallet=Address(rng.randrange(1, 20).to_bytes(20, "big")),
        delta="-1.25",
        balance_after=f"{rng.randrange(10**9)}.{rng.randrange(100):02}",
        reason="Fee",
        timestamp_ms=number,
    )
    return Entry(
        request_uuid=UUID(int=rng.getrandbits(128)),
        received_ts_ms=1_700_000_000_000 + number,
        command_type=rng.choice((None, "CreateOrder", "TickSnapshot")),
        command_data=rng.randbytes(rng.randrange(1, 300)),
        order_id=number,
        events=events,
        balance_updates=[balance] if rng.random() < 0.2 else [],
    )


def read_ledger(path: Path) -> Iterator[Sent]:
    """The requests of a ledger in order; what a kill has cut off at its end is left aside."""
    lines = path.read_text("ascii").splitlines(keepends=True) if path.exists() else []
    pending: Sent | None = None
    for line in lines:
        if not line.endswith("\n"):
            break
        kind, *numbers = line.split(" ")
        assert kind != "bad", line
        values = [int(number) for number in numbers]
        if kind == "sends":
            if pending is not None:
                yield pending
            pending = Sent(values[0], values[1], [])
        elif pending is not None:
            pending = pending._replace(command_ids=values)
    if pending is not None:
        yield pending


class Violation(Exception):
    """The service has answered what it must not."""


class SoakClient:
    """Sends batches, sends some again, contradicts itself, asks; in JSON or MessagePack."""

    def __init__(self, url: str, ledger: Path, seed: int, name: str, stopping: Event) -> None:
        self._seed, self._name = seed, name
        self._rng = Random(f"{seed}/{name}")
        self._json = self._rng.random() < 0.5
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        http2 = self._rng.random() < 0.5
        self._http = httpx.Client(
            base_url=url, http1=not http2, http2=http2, timeout=20, trust_env=False, verify=False
        )
        self._next = 0
        self._last: list[tuple[Entry, int]] = []
        self._pause = Event()  # never set
        self._stopping = stopping

    def run(self) -> None:
        """Send until asked to stop; the request under way is still seen through."""
        actions = (self._append, self._repeat, self._contradict, self._look_up, self._ask)
        while not self._stopping.wait(_PAUSE_S):
            [action] = self._rng.choices(actions, (70, 10, 5, 10, 5))
            action()

    def say(self, *words: object) -> None:
        """Write a line to the ledger at once, whole or not at all."""
        os.write(self._ledger, (" ".join(map(str, words)) + "\n").encode())

    def _append(self) -> None:
        first, count = self._next, self._rng.randint(1, _LARGEST_REQUEST)
        self._next += count
        numbers = range(first, first + count)
        entries = [entry_of(self._seed, self._name, number) for number in numbers]
        self.say("sends", first, count)
        ids = self._acknowledged(entries)
        self.say("acked", *ids)
        if ids != list(range(ids[0], ids[0] + count)):
            raise Violation(f"the ids of a request are not consecutive: {ids}")
        if self._last and ids[0] <= self._last[-1][1]:
            raise Violation(f"command_id {ids[0]} behind {self._last[-1][1]}")
        self._last = list(zip(entries, ids, strict=True))

    def _repeat(self) -> None:
        if self._last:
            ids = self._acknowledged([entry for entry, _ in self._last])
            if ids != [command_id for _, command_id in self._last]:
                raise Violation(f"sent again, {self._last} became {ids}")

    def _contradict(self) -> None:
        if self._last:
            entry, _ = self._rng.choice(self._last)
            other = msgspec.structs.replace(entry, duration_ms=entry.duration_ms + 1)
            response = self._answered("POST", "/entries", **self._body([other]))
            if response.status_code != 409:
                raise Violation(f"other content was answered {response.status_code}")

    def _look_up(self) -> None:
        if not self._last:
            return
        entry, command_id = self._rng.choice(self._last)
        response = self._answered("GET", f"/entries/{entry.request_uuid}")
        if response.status_code != 200 or response.json()["command_id"] != command_id:
            raise Violation(f"{entry.request_uuid}, {command_id}: {response.text}")

    def _ask(self) -> None:
        path = self._rng.choice(("/checkpoint", "/metrics", "/blocks/latest", "/flush"))
        if path == "/flush":
            response = self._answered("POST", path, params={"timeout_s": 0.2})
        else:
            response = self._answered("GET", path)
        if response.status_code not in (200, 404, 504):
            raise Violation(f"{path}: {response.status_code} {response.text}")

    def _acknowledged(self, entries: list[Entry]) -> list[int]:
        """The `command_id`s of entries that are sent until they are acknowledged."""
        response = self._answered("POST", "/entries", **self._body(entries))
        if response.status_code != 200:
            raise Violation(f"{response.status_code} {response.text}")
        result = msgspec.json.decode(response.content, type=AppendResult)
        return result.command_ids([entry.request_uuid for entry in entries])

    def _body(self, entries: list[Entry]) -> dict[str, Any]:
        if self._json:
            content = json.dumps({"entries": [to_json(entry) for entry in entries]}).encode()
            return {"content": content, "headers": {"content-type": JSON}}
        content = msgpack.packb({"entries": [plain(entry) for entry in entries]})
        return {"content": content, "headers": {"content-type": MSGPACK}}

    def _answered(self, method: str, path: str, **request: Any) -> httpx.Response:
        """The first answer that is not about trying again; connections come and go."""
        while True:
            try:
                response = self._http.request(method, path, **request)
            except httpx.TransportError:
                pass
            else:
                if response.status_code not in _RETRIABLE:
                    return response
            # A request that was begun may have been journaled: only an answer settles it.
            self._pause.wait(_RETRY_S)


def main(url: str, ledger: str, seed: str, name: str) -> int:
    stopping = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    client = SoakClient(url, Path(ledger), int(seed), name, stopping)
    try:
        client.run()
    except Violation as violation:
        client.say("bad", violation)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
