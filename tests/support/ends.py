"""The ends of processes that are nobody's children here.

psutil's own waiting goes on until whoever adopted them has asked for their status, which may be
seconds later.
"""

import os
import select
from collections.abc import Iterable
from time import monotonic

import psutil


def await_ends(processes: Iterable[psutil.Process], timeout_s: float = 30) -> None:
    """Wait until all of them have ended, every thread; fail when the limit is reached."""
    deadline = monotonic() + timeout_s
    for process in processes:
        assert has_ended(process, deadline - monotonic()), f"{process} still runs"


def has_ended(process: psutil.Process, timeout_s: float = 0) -> bool:
    """Whether it has ended by now, or does within so many seconds."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        # Its number may be another process's by now.
        return not process.is_running() or bool(poll.poll(max(0, timeout_s) * 1000))
    finally:
        os.close(descriptor)
