"""How a file is synced: `fdatasync`, or io_uring where the kernel lets us (protocol, section 5).

An I/O error is final with either: after a failed sync the kernel may have dropped the dirty pages,
and a second call would report success for data that is lost. Only "not supported" falls back.
"""

import errno
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from app.errors import SettingsError
from app.settings import WalSync
from app.wal.files import FileSystem

_log = logging.getLogger(__name__)

_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
_REHEARSAL: Final = (sys.executable, "-P", "-m", "app.wal.ring")
_REHEARSAL_TIMEOUT_S: Final = 30


class Syncer(Protocol):
    """Makes what was written to a descriptor durable, or raises `OSError`."""

    @property
    def name(self) -> str:
        """The setting that asks for it."""

    def sync(self, fd: int) -> None:
        """Return only after the data of `fd` is on stable storage."""

    def close(self) -> None:
        """Release what the syncer holds."""


class FdatasyncSyncer:
    """The plain system call; it leaves the GIL while it waits."""

    name = WalSync.FDATASYNC.value

    def __init__(self, files: FileSystem) -> None:
        self._files = files

    def sync(self, fd: int) -> None:
        """Call `fdatasync`."""
        self._files.sync_data(fd)

    def close(self) -> None:
        """Nothing is held."""


class FallbackSyncer:
    """io_uring until it says "not supported", `fdatasync` from then on."""

    def __init__(self, first: Syncer, second: Syncer, on_fallback: Callable[[], None]) -> None:
        self._current, self._spare = first, second
        self._on_fallback = on_fallback

    @property
    def name(self) -> str:
        """Which way is in use now."""
        return self._current.name

    def sync(self, fd: int) -> None:
        """Sync, changing over once where it is not supported. I/O errors are passed on."""
        try:
            self._current.sync(fd)
        except OSError as error:
            if error.errno not in _UNSUPPORTED or self._current is self._spare:
                raise
            _log.warning("io_uring can't sync here (%s); using fdatasync from now on", error)
            self._on_fallback()
            self._current.close()
            self._current = self._spare
            self._current.sync(fd)

    def close(self) -> None:
        """Release what the way in use holds."""
        self._current.close()


def open_ring(rehearsal: Sequence[str] = _REHEARSAL) -> Syncer:
    """Syncing by io_uring, after a process of its own has tried it.

    The binding may be built for newer processors than this one, and a filter of system calls may
    kill whoever sets up a ring; either would end the service. Raises `OSError` where it can't be.
    """
    tried = subprocess.run(
        rehearsal, capture_output=True, text=True, timeout=_REHEARSAL_TIMEOUT_S, check=False
    )
    if tried.returncode < 0:
        ended_by = signal.Signals(-tried.returncode).name
        raise OSError(errno.ENOSYS, f"a process that tried it was ended by {ended_by}")
    if tried.returncode > 0:
        raise OSError(errno.ENOSYS, tried.stderr.strip().rpartition("\n")[2])
    from app.wal.ring import IoUringSyncer  # noqa: PLC0415 - loads what had to be tried first

    return IoUringSyncer()


def open_syncer(choice: WalSync, files: FileSystem, on_fallback: Callable[[], None]) -> Syncer:
    """The syncer for a setting. `auto` prefers io_uring and falls back where it can't be set up.

    Raises `SettingsError` when `io_uring` was asked for and can't be had.
    """
    plain = FdatasyncSyncer(files)
    if choice is WalSync.FDATASYNC:
        return plain
    try:
        ring = open_ring()
    except OSError as error:
        if choice is WalSync.IO_URING:
            raise SettingsError(
                f"JOURNAL_WAL_SYNC='io_uring': io_uring can't be set up here ({error}); "
                "'auto' or 'fdatasync' is allowed"
            ) from error
        _log.warning("io_uring can't be set up here (%s); using fdatasync", error)
        on_fallback()
        return plain
    return ring if choice is WalSync.IO_URING else FallbackSyncer(ring, plain, on_fallback)
