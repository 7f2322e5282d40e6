"""Syncing by io_uring. `app.wal.sync` runs this module by itself before it imports it."""

import contextlib
import os
from typing import Final

import liburing

from app.errors import InvariantError

_RING_ENTRIES: Final = 8


class IoUringSyncer:
    """`IORING_OP_FSYNC` with the datasync flag, awaited on an eventfd.

    The binding holds the GIL while it waits for a completion, so it is only asked to submit; the
    wait is a read of the eventfd, which leaves the GIL.
    """

    name = "io_uring"

    def __init__(self) -> None:
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
        self._prepare(fd)
        _check(liburing.io_uring_submit(self._ring))
        self._await_completion()
        _check(liburing.io_uring_peek_cqe(self._ring, self._cqe))
        completion = self._cqe[0]
        try:
            if completion.user_data != self._submitted:
                raise InvariantError(
                    f"io_uring completed request {completion.user_data}, not {self._submitted}"
                )
            _check(completion.res)
        finally:
            liburing.io_uring_cqe_seen(self._ring, completion)

    def _prepare(self, fd: int) -> None:
        self._submitted += 1
        request = liburing.io_uring_get_sqe(self._ring)
        liburing.io_uring_prep_fsync(request, fd, liburing.IORING_FSYNC_DATASYNC)
        request.user_data = self._submitted

    def rehearse(self) -> None:
        """Take every step of a sync but those that wait for the kernel, and close."""
        _check(liburing.io_uring_submit(self._ring))  # of nothing: no system call
        self._prepare(-1)
        with contextlib.suppress(BlockingIOError):  # nothing is complete
            liburing.io_uring_peek_cqe(self._ring, self._cqe)
        self.close()

    def _await_completion(self) -> None:
        while True:
            try:
                os.eventfd_read(self._event)
            except InterruptedError:  # by a signal, which Python does not try again for here
                continue
            return

    def close(self) -> None:
        """Tear the ring down."""
        liburing.io_uring_queue_exit(self._ring)
        os.close(self._event)


def _check(result: int | None) -> None:
    """Raise `OSError` for a negative result, as the kernel encodes errors."""
    if result is not None and result < 0:
        raise OSError(-result, os.strerror(-result))


if __name__ == "__main__":
    IoUringSyncer().rehearse()
