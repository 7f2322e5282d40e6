"""Where the data of a benchmark goes: a disk, with room, and empty again afterwards."""

import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

# Their fdatasync has nothing to do.
_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})


@contextmanager
def scratch_directory(parent: Path | None, needed_bytes: int) -> Iterator[Path]:
    """A directory below `parent` (default: where temporary files go), removed at the end.

    Raises `SystemExit` when that is in memory or has no room; and on SIGTERM, so that what was
    started is stopped.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="journal-bench-", dir=parent) as name:
        directory = Path(name)
        kind = filesystem_of(directory)
        if kind in _MEMORY:
            raise SystemExit(f"{directory.parent} is a {kind}, not a disk; see --directory")
        free_bytes = shutil.disk_usage(directory).free
        if free_bytes < needed_bytes:
            raise SystemExit(
                f"{directory.parent} has {free_bytes >> 30} GiB left; "
                f"{needed_bytes >> 30} GiB are needed; see --directory"
            )
        yield directory


def filesystem_of(directory: Path) -> str:
    """The type of the file system that holds `directory`: the one mounted deepest above it."""
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    path = directory.resolve()
    above = [place for place in (path, *path.parents) if place in mounts]
    return mounts[above[0]] if above else "unknown"
