"""A memory cgroup, of either version, in which the kernel kills a process that takes too much."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.support.tools import unavailable
from tests.support.waiting import wait_for

_ROOT: Final = Path("/sys/fs/cgroup")
_V1: Final = _ROOT / "memory"


class MemoryCgroup:
    """What its processes allocate from the time they join is limited."""

    def __init__(self, directory: Path, limit_name: str) -> None:
        self._directory = directory
        self._limit = directory / limit_name

    def limit(self, size_bytes: int) -> None:
        """Set the limit; a process that needs more is killed."""
        self._limit.write_text(str(size_bytes))

    def join(self, pid: int) -> None:
        """Move a process in."""
        (self._directory / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        name = "memory.oom_control" if self._directory.parent == _V1 else "memory.events"
        counts = dict(line.split() for line in (self._directory / name).read_text().splitlines())
        return int(counts["oom_kill"])

    def is_empty(self) -> bool:
        """Whether all of its processes have ended."""
        return not (self._directory / "cgroup.procs").read_text()


@contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    """Make a cgroup. Skips where that is not allowed."""
    if (_V1 / "cgroup.procs").exists():
        parent, limit_name = _V1, "memory.limit_in_bytes"
    else:
        parent, limit_name = _ROOT, "memory.max"
    directory = parent / f"journal-test-{uuid4().hex}"
    try:
        directory.mkdir()
    except OSError as error:
        unavailable("cgroup", f"no memory cgroup can be made here: {error}")
    group = MemoryCgroup(directory, limit_name)
    try:
        if not (directory / limit_name).exists():
            missing = directory / limit_name
            unavailable("cgroup", f"cgroups have no memory controller here: no {missing}")
        yield group
    finally:
        wait_for(group.is_empty, "the cgroup is empty")
        directory.rmdir()
