"""Waiting for a condition, with a limit."""

from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import TypeVar

T = TypeVar("T")

_INTERVAL_S = 0.02


def wait_for(
    condition: Callable[[], T | None],
    what: str,
    timeout_s: float = 30,
    interval_s: float = _INTERVAL_S,
) -> T:
    """Return the first true value of `condition`; fail with `what` when the limit is reached."""
    deadline = monotonic() + timeout_s
    pause = Event()
    while True:
        value = condition()
        if value:
            return value
        if monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        pause.wait(interval_s)
