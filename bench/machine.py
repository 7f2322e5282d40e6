"""What a benchmark ran on, and how much of it others took meanwhile."""

import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cores": os.cpu_count(),
        # Without what a vendor adds to the version.
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


class Others:
    """The share of the machine's time that went to other programs, or to other guests of its host.

    Ours are this process and what it has started, and what names `scratch` on its command line: a
    PostgreSQL that has detached itself. Of programs, time in user mode alone is counted: the
    kernel's own threads work for us too.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = str(scratch)
        self._before = self._seconds()

    def share(self) -> float:
        """From 0 to 1, since the beginning."""
        total, busy, ours = (
            after - before for after, before in zip(self._seconds(), self._before, strict=True)
        )
        return max(0.0, busy - ours) / total if total else 0.0

    def _seconds(self) -> tuple[float, float, float]:
        """Of all cores together: all, what programs and other guests have used, and ours of it."""
        times = psutil.cpu_times()
        # What guests of this machine use is in `user` already.
        total = sum(times) - times.guest - times.guest_nice
        return total, times.user + times.nice + times.steal, sum(map(_used, self._ours()))

    def _ours(self) -> Iterator[psutil.Process]:
        roots = [psutil.Process(), *self._detached()]
        found = {each for root in roots for each in (root, *_below(root))}
        yield from found

    def _detached(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["cmdline"]):
            if any(self._scratch in part for part in process.info["cmdline"] or ()):
                yield process


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _used(process: psutil.Process) -> float:
    """Its own time in user mode, and that of its children that have ended."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.children_user)
