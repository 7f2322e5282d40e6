"""The load generator: a process of its own.

It gets jobs on standard input, one JSON object a line, and answers each with a `Sample`. Payloads
are made before the clock starts. A *closed* load keeps a number of sends in flight; an *open* one
sends at a fixed rate, whatever the contestant does, and counts each from when it was due. What is
acknowledged in the first moments of a load is not counted.

The process ends with `os._exit`. A normal exit aborts it now and then: a runtime thread of
pyreqwest that has just handed over a result gives back its thread state while the interpreter is
torn down ("PyGILState_Release: thread state must be current when releasing", SIGABRT).
"""

import asyncio
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from selectors import SelectSelector
from time import perf_counter
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Struct

WARM_S: Final = 0.2
# An open load that is so far behind its schedule measures nothing any more.
_MAX_WAITING: Final = 20_000

Send = Callable[[Any], Awaitable[None]]


class Job(Struct, kw_only=True, frozen=True):
    """What to send: to `target`, as the module `driver` of `bench.contestants` does it.

    `sends` bounds how many payloads are made. `rate` (sends a second) makes the load an open one.
    """

    driver: str
    target: str
    entries: int = 1
    in_flight: int = 1
    warm_s: float = WARM_S
    seconds: float = 1.0
    sends: int = 1000
    rate: float = 0.0
    options: dict[str, str] = {}


class Sample(Struct, kw_only=True, frozen=True):
    """What a load has shown."""

    entries_per_s: float
    p50_ms: float
    p99_ms: float
    entries: int


class Prepared(NamedTuple):
    """`senders` send one of the `payloads` at a time: each returns once it is acknowledged."""

    payloads: Iterator[Any]
    senders: Sequence[Send]


class Driver(Protocol):
    """How a contestant is spoken to."""

    def connect(self, job: Job) -> AbstractAsyncContextManager["Prepared"]:
        """Connect, and make at most `job.sends` payloads beforehand."""


class _Measured:
    """When sends were due and when they were acknowledged."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.started = perf_counter()
        self.ends: list[float] = []
        self.latencies: list[float] = []

    @property
    def until(self) -> float:
        return self.started + self._job.warm_s + self._job.seconds

    def add(self, due: float) -> None:
        now = perf_counter()
        self.ends.append(now)
        self.latencies.append(now - due)

    def sample(self) -> Sample:
        """Over what was acknowledged between the warm-up and the end."""
        start = self.started + self._job.warm_s
        until = min(self.until, self.ends[-1])
        if not any(start <= end <= until for end in self.ends):
            # It stalled all the time: that is what was measured.
            until = self.ends[-1]
        kept = [
            latency
            for end, latency in zip(self.ends, self.latencies, strict=True)
            if start <= end <= until
        ]
        if not kept:
            raise RuntimeError("nothing was acknowledged while the clock ran")
        kept.sort()
        entries = len(kept) * self._job.entries
        return Sample(
            entries_per_s=entries / (until - start),
            p50_ms=1000 * kept[len(kept) // 2],
            p99_ms=1000 * kept[int(len(kept) * 0.99)],
            entries=len(self.ends) * self._job.entries,
        )


async def run(job: Job) -> Sample:
    """Put the load on, and measure."""
    driver: Driver = importlib.import_module(f"bench.contestants.{job.driver}").DRIVER
    async with driver.connect(job) as (payloads, senders):
        # Collecting would walk all that was prepared, again and again.
        gc.collect()
        gc.disable()
        try:
            measured = _Measured(job)
            if job.rate:
                await _open(job.rate, payloads, senders[0], measured)
            else:
                await _closed(payloads, senders, measured)
        finally:
            gc.enable()
    return measured.sample()


async def _closed(payloads: Iterator[Any], senders: Sequence[Send], measured: _Measured) -> None:
    until = measured.until

    async def send_all(send: Send) -> None:
        for payload in payloads:
            due = perf_counter()
            if due > until:
                return
            await send(payload)
            measured.add(due)

    async with asyncio.TaskGroup() as group:
        for send in senders:
            group.create_task(send_all(send))


async def _open(rate: float, payloads: Iterator[Any], send: Send, measured: _Measured) -> None:
    waiting = 0

    async def send_one(payload: Any, due: float) -> None:
        nonlocal waiting
        await send(payload)
        waiting -= 1
        measured.add(due)

    async with asyncio.TaskGroup() as group:
        for number, payload in enumerate(payloads):
            due = measured.started + number / rate
            if due > measured.until:
                return
            if (early := due - perf_counter()) > 0:
                await asyncio.sleep(early)
            waiting += 1
            if waiting > _MAX_WAITING:
                raise RuntimeError(f"{waiting} sends wait: {rate:.0f} a second are too many")
            group.create_task(send_one(payload, due))


def main() -> None:
    """Do jobs until standard input ends."""
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        for line in sys.stdin:
            sample = runner.run(run(msgspec.json.decode(line, type=Job)))
            sys.stdout.write(msgspec.json.encode(sample).decode() + "\n")
            sys.stdout.flush()


def _precise_loop() -> asyncio.AbstractEventLoop:
    """A loop whose timers are not rounded up to a millisecond, as they are with epoll."""
    return asyncio.SelectorEventLoop(SelectSelector())


if __name__ == "__main__":
    status = 1
    try:
        main()
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)
