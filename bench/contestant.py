"""What the harness asks of a contestant, and what one is made of."""

import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final, Protocol, TypeVar

from msgspec.structs import replace

from bench.generator import ROOT, Generator
from bench.load import Job

SERVERS: Final = ROOT / "bench" / ".servers"
_READY_S: Final = 60.0
_STOP_S: Final = 60.0
_pause: Final = Event()

Metrics = Mapping[str, float]
T = TypeVar("T")


@dataclass
class Round:
    """What a measurement gets: the load generator, how long a slice is, and what came before.

    `measured` are the rows of this round so far, in the order of the table.
    """

    generator: Generator
    seconds: float
    measured: dict[str, Metrics] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table: `measure` takes one slice.

    `needs` are rows that come before it. A `slow` one has less rounds where time is short.
    """

    name: str
    label: str
    measure: Callable[[Round], Metrics]
    needs: tuple[str, ...] = ()
    slow: bool = False
    warms_up: bool = True


class Contestant(Protocol):
    """Somebody who takes part. All are launched at first, side by side, then waited for."""

    name: str

    def missing(self) -> str | None:
        """Why it can't take part here; None when it can."""

    def rows(self) -> Sequence[Row]:
        """What is measured of it."""

    def launch(self, scratch: Path) -> None:
        """Start; its data goes below `scratch`. Need not wait."""

    def ready(self) -> None:
        """Wait until it can be measured."""

    def close(self) -> None:
        """Stop all it has started. Also after a launch that failed."""


def loaded(job: Callable[[], Job]) -> Callable[[Round], Metrics]:
    """A measurement that is one load; `job` is asked once the contestant is ready."""

    def measure(turn: Round) -> Metrics:
        return put_on(turn, job())

    return measure


def put_on(turn: Round, job: Job) -> Metrics:
    """One load for as long as a slice; `job.sends` are at most so many a second."""
    sends = math.ceil(job.sends * (job.warm_s + turn.seconds))
    sample = turn.generator.run(replace(job, seconds=turn.seconds, sends=sends))
    return {
        "entries_per_s": sample.entries_per_s,
        "p50_ms": sample.p50_ms,
        "p99_ms": sample.p99_ms,
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], T | None], what: str, timeout_s: float = _READY_S) -> T:
    """The first true value of `condition`. Raises `TimeoutError` with `what`."""
    deadline = monotonic() + timeout_s
    while not (value := condition()):
        if monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        _pause.wait(0.005)
    return value


class Server:
    """A server process; what it says goes to `NAME.log` in its directory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self, command: Sequence[str | Path], scratch: Path, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start it in a group of its own: a terminal's Ctrl-C is for the harness to act on."""
        with (scratch / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    def answers_on(self, port: int) -> bool:
        """Whether it listens by now. Raises `RuntimeError` when it has ended instead."""
        self.check()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def check(self) -> None:
        """Raise `RuntimeError` when it has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self._process.returncode}; see its log")

    def stop(self) -> None:
        """Ask it to end; kill it when it does not. May be repeated."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cycled(items: Sequence[T], times: int) -> Iterator[T]:
    """`items` over and over."""
    return (items[number % len(items)] for number in range(times))
