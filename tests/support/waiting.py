"""Waiting for a condition, with a limit."""

from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import Final, TypeVar

T = TypeVar("T")

_INTERVAL_S: Final = 0.02
# What asking rarely may add to a wait.
_LATENESS: Final = 0.05


def wait_for(
    condition: Callable[[], T | None],
    what: str,
    timeout_s: float = 30,
    interval_s: float | None = None,
) -> T:
    """Return the first true value of `condition`; fail with `what` when the limit is reached.

    It is asked for every `interval_s`; without one ever more rarely, the longer that takes.
    """
    started = monotonic()
    pause = Event()
    while True:
        value = condition()
        if value:
            return value
        waited_s = monotonic() - started
        if waited_s > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        rarely_s = max(_INTERVAL_S, waited_s * _LATENESS)
        pause.wait(rarely_s if interval_s is None else interval_s)
