"""Moments at which a crash is worth trying: conditions to wait for, no stretches of time."""

import socket
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Final

import psutil

from tests.support.service import Service
from tests.support.waiting import wait_for

# Tighter than a commit takes, so that a kill can fall between its write and its sync.
_CLOSELY_S: Final = 0.0002
# A segment is filled by a client that shares the processors with others.
_SEGMENT_S: Final = 120.0
_READY: Final = "entries can be acknowledged"
# Less processor time than scanning and loading the duplicate index take.
_RECOVERY_CPU_S: Final = 0.06


class Moment(Enum):
    """When to kill, once enough entries have been acknowledged."""

    ACKNOWLEDGED = auto()
    RECORD_WRITTEN = auto()
    SEGMENT_BEGUN = auto()
    RECOVERING = auto()


def moments(rng: Random, count: int) -> list[Moment]:
    """`count` moments, as many of each kind as of any other, shuffled."""
    kinds = [list(Moment)[number % len(Moment)] for number in range(count)]
    rng.shuffle(kinds)
    return kinds


def await_growth(service: Service, moment: Moment) -> None:
    """Wait for a record that has just been written, or for a segment that is just being begun."""
    wal_dir = service.data_dir / "wal"
    if moment is Moment.RECORD_WRITTEN:
        before = wal_end(wal_dir)
        wait_for(lambda: wal_end(wal_dir) > before, "the log grows", interval_s=_CLOSELY_S)
    elif moment is Moment.SEGMENT_BEGUN:
        names = _names(wal_dir)
        wait_for(lambda: _names(wal_dir) != names, "a segment begins", _SEGMENT_S, _CLOSELY_S)


def await_recovery(service: Service, rng: Random) -> bool:
    """Wait until a launched service is some way into its recovery; whether it is not ready yet."""
    before = service.log.count(_READY)
    worker = wait_for(
        lambda: _lock_holder(service), "the worker owns the log", interval_s=_CLOSELY_S
    )
    times = worker.cpu_times()
    limit_s = times.user + times.system + rng.uniform(0, _RECOVERY_CPU_S)

    def is_far_enough() -> bool:
        times = worker.cpu_times()
        return times.user + times.system >= limit_s or service.log.count(_READY) > before

    wait_for(is_far_enough, "the worker recovers", interval_s=_CLOSELY_S)
    return service.log.count(_READY) == before


def wal_end(wal_dir: Path) -> int:
    """The logical offset behind the last byte of a log."""
    last = max(wal_dir.glob("*.wal"))
    return int(last.stem) + last.stat().st_size


def quiet_port(rng: Random) -> int:
    """A free port that no client is ever given, so that it is still free after a kill."""
    while True:
        port = rng.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _names(wal_dir: Path) -> set[str]:
    return {path.name for path in wal_dir.iterdir()}


def _lock_holder(service: Service) -> psutil.Process | None:
    lock = str(service.data_dir / "wal" / "lock")
    for process in psutil.Process(service.pid).children():
        try:
            if any(file.path == lock for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    return None
