"""What honest clients notice of an attack: the 99th percentile of their acknowledgements.

One service, one honest client over HTTP/2 at a fixed rate, and an attacker in a process of its own
that is there in every other phase: quiet, attacked, quiet, and so on, so that what else the machine
does meets both. Each phase's first moments are not counted. The exit status is 1 when the
percentile under attack is twice the quiet one or more, over all phases of one attack.

Needs no Postgres. `python -m bench.attacks [ATTACK …]`; about half a minute for each.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Final

import httpx
from hyperframe.frame import PingFrame, SettingsFrame

from tests.support.http_entries import MSGPACK, msgpack_entry, packed
from tests.support.raw_http import RawConnection, RawHttp2
from tests.support.service import Service

PHASES: Final = 6
PHASE_S: Final = 2.5
WARM_S: Final = 0.5
RATE: Final = 100
ENTRIES: Final = 10
MOST: Final = 2.0
# An attacker as fast as this machine can be would measure the machine alone: 2 cores serve both.
PAUSE_S: Final = 0.01
SHORT_PAUSE_S: Final = 0.0005
NO_DATABASE: Final = "postgresql://127.0.0.1:9/none"
BODY: Final = (("content-type", MSGPACK),)


def recorded(port: int, frames: Callable[[RawHttp2], Iterable[bytes]]) -> list[bytes]:
    """What a connection would send, to be sent by others: every one begins in the same state.

    Made anew each time, it would cost the attacker, and so this machine, more than the service.
    """
    with RawHttp2(port) as connection:
        return list(frames(connection))


def rapid_resets(port: int) -> None:
    """Streams that are reset at once, few enough at a time that each is taken for a request."""

    def frames(connection: RawHttp2) -> Iterable[bytes]:
        for _ in range(1000):
            stream, headers = connection.headers(more=BODY)
            yield headers + connection.reset(stream)

    pairs = recorded(port, frames)
    resets = [b"".join(pairs[at : at + 8]) for at in range(0, len(pairs), 8)]
    while again():
        with RawHttp2(port) as attacker:
            for some in resets:
                if not attacker.send(some):
                    break
                time.sleep(SHORT_PAUSE_S)


def stream_flood(port: int) -> None:
    """More streams than there may be, left open with the beginning of a body."""

    def frames(connection: RawHttp2) -> Iterable[bytes]:
        for _ in range(256):
            stream, headers = connection.headers(more=BODY)
            yield headers + connection.data(stream, b"\x81")

    streams = b"".join(recorded(port, frames))
    while again():
        with RawHttp2(port) as attacker:
            attacker.send(streams)
            time.sleep(PAUSE_S)


def silent_connections(port: int) -> None:
    """Hundreds of connections that say nothing."""
    while again():
        attackers = [RawConnection(port) for _ in range(200)]
        time.sleep(0.2)
        for attacker in attackers:
            attacker.socket.close()


def pings(port: int) -> None:
    """Frames that want an answer, which is not read."""
    flood = PingFrame(0, opaque_data=b"8 bytes.").serialize() * 10_000
    while again():
        with RawHttp2(port) as attacker:
            attacker.socket.settimeout(0.2)
            attacker.send(flood)


def no_window(port: int) -> None:
    """Answers that are asked for and can't be sent."""
    while again():
        with RawHttp2(port, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as attacker:
            for _ in range(16):
                _, headers = attacker.headers("GET", "/healthz", end=True)
                attacker.send(headers)


def large_bodies(port: int) -> None:
    """Bodies of a megabyte that hold a hundred times as much."""
    # A million empty maps where a digest has its symbols.
    body = packed(msgpack_entry(pre_digest={"symbols": {"a": None}})).replace(
        b"\xa1a\xc0", b"\xa1a\xdd" + (1 << 20).to_bytes(4) + b"\x80" * (1 << 20)
    )
    head = (
        b"POST /entries HTTP/1.1\r\nhost: journal\r\nconnection: close\r\n"
        b"content-type: %b\r\ncontent-length: %d\r\n\r\n" % (MSGPACK.encode(), len(body))
    )
    while again():
        with RawConnection(port) as attacker:
            attacker.send(head + body)
            attacker.answer()
        time.sleep(0.2)


ATTACKS: Final[dict[str, Callable[[int], None]]] = {
    attack.__name__: attack
    for attack in (rapid_resets, stream_flood, silent_connections, pings, no_window, large_bodies)
}


def again() -> bool:
    """Let others have a turn; an attack goes on until its process is ended."""
    time.sleep(PAUSE_S)
    return True


def attack_for_ever(name: str, port: int) -> None:
    """The attacker's process. A connection that the service has ended is opened again.

    It leaves the processors to the others: a real one would not run on the machine it attacks.
    """
    os.nice(19)
    while True:
        with suppress(OSError):
            ATTACKS[name](port)


async def phase(client: httpx.AsyncClient) -> list[float]:
    """Latencies in seconds of one phase, each from when the request was due."""
    latencies: list[float] = []
    started = time.perf_counter()

    async def send(due: float) -> None:
        body = packed(*(msgpack_entry() for _ in range(ENTRIES)))
        response = await client.post("/entries", content=body, headers=dict(BODY))
        if response.status_code != 200:
            raise RuntimeError(f"an honest client got {response.status_code}: {response.text}")
        if due - started > WARM_S:
            latencies.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        for number in range(int(PHASE_S * RATE)):
            due = started + number / RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(send(due))
    return latencies


async def measure(service: Service, name: str) -> bool:
    """All phases of one attack; whether what honest clients noticed is within the limit."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[bool, list[float]] = {False: [], True: []}
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=service.url, http1=False, http2=True, timeout=30, trust_env=False, limits=limits
    ) as client:
        for _, attacked in zip(range(PHASES), cycle((False, True)), strict=False):
            attacker = spawn.Process(target=attack_for_ever, args=(name, service.port), daemon=True)
            if attacked:
                attacker.start()
            try:
                found[attacked] += await phase(client)
            finally:
                if attacked:
                    attacker.kill()
                    attacker.join()
    quiet, attacked_p99 = (quantiles(found[each], n=100)[98] * 1000 for each in (False, True))
    ratio = attacked_p99 / quiet
    line = f"{name:20} {quiet:8.2f} ms quiet {attacked_p99:8.2f} ms attacked {ratio:6.2f} times"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return ratio < MOST


def main() -> int:
    """Measure the attacks that are named, or all."""
    names = sys.argv[1:] or list(ATTACKS)
    with tempfile.TemporaryDirectory(prefix="bench-attacks-") as folder:
        data_dir = Path(folder) / "data"
        with Service(data_dir, NO_DATABASE, ALLOW_NEW_WAL="true") as service:
            service.start()
            results = [asyncio.run(measure(service, name)) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
