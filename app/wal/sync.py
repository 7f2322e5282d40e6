"""How a file is synced: `fdatasync`, or io_uring where the kernel lets us (protocol, section 5).

An I/O error is final with either: after a failed sync the kernel may have dropped the dirty pages,
and a second call would report success for data that is lost. Only "not supported" falls back.
"""

import errno
import logging
import os
from collections.abc import Callable
from typing import Any, Final, Protocol

from app.errors import InvariantError, SettingsError
from app.settings import WalSync
from app.wal.files import FileSystem

try:
    import liburing
except ImportError:  # it has no wheel for every architecture
    liburing = None

_log = logging.getLogger(__name__)

_RING_ENTRIES: Final = 8
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


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


class IoUringSyncer:
    """`IORING_OP_FSYNC` with the datasync flag, awaited on an eventfd.

    The binding holds the GIL while it waits for a completion, so it is only asked to submit; the
    wait is a read of the eventfd, which leaves the GIL.
    """

    name = WalSync.IO_URING.value

    def __init__(self) -> None:
        if liburing is None:
            raise OSError(errno.ENOSYS, "the liburing package is not installed")
        self._uring: Any = liburing
        self._ring = liburing.Ring()
        self._cqe = liburing.Cqe()
        self._submitted = 0
        _check(liburing.io_uring_queue_init(_RING_ENTRIES, self._ring, 0))
        self._event = os.eventfd(0, os.EFD_CLOEXEC)
        try:
            _check(liburing.io_uring_register_eventfd(self._ring, self._event))
        except OSError:
            self.close()
            raise

    def sync(self, fd: int) -> None:
        """Submit one fsync and wait for its completion."""
        uring = self._uring
        self._submitted += 1
        request = uring.io_uring_get_sqe(self._ring)
        uring.io_uring_prep_fsync(request, fd, uring.IORING_FSYNC_DATASYNC)
        request.user_data = self._submitted
        _check(uring.io_uring_submit(self._ring))
        self._await_completion()
        _check(uring.io_uring_peek_cqe(self._ring, self._cqe))
        completion = self._cqe[0]
        try:
            if completion.user_data != self._submitted:
                raise InvariantError(
                    f"io_uring completed request {completion.user_data}, not {self._submitted}"
                )
            _check(completion.res)
        finally:
            uring.io_uring_cqe_seen(self._ring, completion)

    def _await_completion(self) -> None:
        while True:
            try:
                os.eventfd_read(self._event)
            except InterruptedError:  # by a signal, which Python does not try again for here
                continue
            return

    def close(self) -> None:
        """Tear the ring down."""
        self._uring.io_uring_queue_exit(self._ring)
        os.close(self._event)


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


def open_syncer(choice: WalSync, files: FileSystem, on_fallback: Callable[[], None]) -> Syncer:
    """The syncer for a setting. `auto` prefers io_uring and falls back where it can't be set up.

    Raises `SettingsError` when `io_uring` was asked for and can't be had.
    """
    plain = FdatasyncSyncer(files)
    if choice is WalSync.FDATASYNC:
        return plain
    try:
        ring = IoUringSyncer()
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


def _check(result: int | None) -> None:
    """Raise `OSError` for a negative result, as the kernel encodes errors."""
    if result is not None and result < 0:
        raise OSError(-result, os.strerror(-result))
