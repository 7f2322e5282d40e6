"""Ctrl-C, while a command waits in an event loop."""

import asyncio
import signal
import socket
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

T = TypeVar("T")

# The exit status that a shell gives a command that SIGINT ended.
INTERRUPTED: Final = 130


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, whose loop is woken by signals.

    It is not by itself, where one comes just before the loop begins to wait: a Ctrl-C would be
    noticed when something else happens. Raises `KeyboardInterrupt`.
    """

    async def woken() -> T:
        with _wake_up(asyncio.get_running_loop()):
            return await main

    return asyncio.run(woken())


@contextmanager
def _wake_up(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the business of another one
        return
    reading, writing = socket.socketpair()
    with reading, writing:
        for end in (reading, writing):
            end.setblocking(False)
        loop.add_reader(reading, reading.recv, 4096)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(reading)
