"""Calls take turns, so that however many come at once leave entries half of the loop's time."""

import asyncio
from collections import deque
from time import perf_counter

from app.errors import Unavailable
from app.service.interpreter import switch_sooner


class Turns:
    """Lets one in; those in line behind it wait until as much time has passed as it took.

    What is let in at once takes its time at once: entries would wait until all of it was done. They
    take several rounds of the loop, so that one call in each round would still hold them up.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = False

    async def take(self, *, going_on: bool = False) -> None:
        """Wait for a turn; none is waited for where nobody else has one in this round.

        Raises `Unavailable` when as many wait as may, unless the call is `going_on`: it had a turn
        before, and takes another for what it does next.
        """
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._after, perf_counter())
            return
        if len(self._waiting) >= self._limit and not going_on:
            raise Unavailable(f"{self._limit} calls wait for their turn")
        turn = loop.create_future()
        if not self._waiting:
            switch_sooner(crowded=True)
        self._waiting.append(turn)
        await turn

    def _after(self, began: float) -> None:
        """The first round of a call is over; `began` is when it was let in."""
        if self._waiting:
            asyncio.get_running_loop().call_later(perf_counter() - began, self._next)
        else:
            self._leave()

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its call was cancelled
                turn.set_result(None)
                turn.get_loop().call_soon(self._after, perf_counter())
                return
        self._leave()

    def _leave(self) -> None:
        self._taken = False
        switch_sooner(crowded=False)
