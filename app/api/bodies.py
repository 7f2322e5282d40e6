"""Request bodies while they arrive: each within its limits, and all together within others.

A client can open hundreds of streams and send the beginning of a large body on each. So what all
unfinished bodies hold is bounded: beyond it the largest of them is refused, which leaves room to
small ones whatever a hostile client does; beyond so many, the oldest one is.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from app.api.problems import HttpProblem, body_too_large
from app.errors import Unavailable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Arrived(Protocol):
    """A part of a body is there: what to wait for before the next, and whether there is one."""

    def __call__(self, size_bytes: int, *, last: bool) -> Awaitable[bool] | None:
        """`last` says whether it ends the body."""


MAX_UNFINISHED: Final = 4096
_DISCARD_TIMEOUT_S: Final = 5.0


class IncomingBody:
    """A request's body as it arrives; no more of it comes once it is `complete` or `broken`.

    `arrived` is told how large each part is, and may have the next one wait.
    """

    __slots__ = ("_arrived", "_receive", "broken", "complete")

    def __init__(self, receive: Receive, arrived: Arrived) -> None:
        self._receive = receive
        self._arrived = arrived
        self.complete = self.broken = False

    async def part(self) -> bytes:
        """The next part of it. Raises a 400 when the client has left, or sent what is no body.

        The server does not tell which; the second kind of client awaits an answer.
        """
        message = await self._receive()
        part: bytes = message.get("body", b"")
        is_there = message["type"] == "http.request"
        self.complete = is_there and not message.get("more_body", False)
        if is_there and (waiting := self._arrived(len(part), last=self.complete)):
            is_there = await waiting
        if not is_there:
            self.broken = True
            detail = "the body broke off or is not framed as HTTP asks for"
            raise HttpProblem(400, "incomplete_body", detail)
        return part


class _Reading:
    """A body that is being read: how much of it is there, and why it was refused, if it was."""

    __slots__ = ("refusal", "size_bytes", "task", "until")

    def __init__(self, task: "asyncio.Task[Any] | None", until: float) -> None:
        self.task = task
        self.until = until
        self.size_bytes = 0
        # Made when it is raised: kept here, it would keep the body, by its traceback, until the
        # next collection of cycles.
        self.refusal: Callable[[], HttpProblem | Unavailable] | None = None


class Bodies:
    """Reads bodies of at most `max_body_bytes`, unfinished ones of `max_total_bytes` together.

    One timer watches over all of them: a time-out of its own would be a good part of what a small
    request costs.
    """

    def __init__(
        self,
        max_body_bytes: int,
        max_total_bytes: int,
        timeout_s: float,
        max_unfinished: int = MAX_UNFINISHED,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_total_bytes = max_total_bytes
        self._timeout_s = timeout_s
        self._max_unfinished = max_unfinished
        self._total_bytes = 0
        # In the order in which they began, and so of their time limits.
        self._unfinished: dict[_Reading, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, incoming: IncomingBody) -> bytes | bytearray:
        """A whole body; time and size are bounded while it arrives, whatever was announced.

        Raises `Unavailable` (refused in favour of others), or a 400, 408 or 413.
        """
        reading = self._began()
        try:
            body: bytes | bytearray = await incoming.part()
            if not incoming.complete:
                self._grown(reading, len(body))
            while not incoming.complete and len(body) <= self._max_body_bytes:
                if reading.refusal is not None:
                    raise reading.refusal()
                # Over HTTP/2 the end often comes by itself, with nothing in it.
                if part := await incoming.part():
                    if isinstance(body, bytes):
                        body = bytearray(body)
                    body += part
                    self._grown(reading, len(part))
        except asyncio.CancelledError:
            if reading.refusal is None or reading.task is None:
                raise
            reading.task.uncancel()
            raise reading.refusal() from None
        finally:
            if reading.refusal is None:
                self._leave(reading)
        if len(body) > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        return body

    async def discard(self, incoming: IncomingBody) -> None:
        """Take in what is left of a refused body, within limits.

        The answer is out already, but many clients read it only when they have sent everything.
        """
        if incoming.complete or incoming.broken:
            return
        left_bytes = self._max_body_bytes
        with suppress(HttpProblem, TimeoutError):
            async with asyncio.timeout(_DISCARD_TIMEOUT_S):
                while left_bytes > 0 and not incoming.complete:
                    left_bytes -= len(await incoming.part())

    def _began(self) -> _Reading:
        if len(self._unfinished) >= self._max_unfinished:
            why = f"more than {self._max_unfinished} bodies are on their way"
            self._refuse(next(iter(self._unfinished)), partial(Unavailable, why))
        loop = asyncio.get_running_loop()
        reading = _Reading(asyncio.current_task(), loop.time() + self._timeout_s)
        self._unfinished[reading] = None
        if self._timer is None:
            self._timer = loop.call_at(reading.until, self._check_time)
        return reading

    def _check_time(self) -> None:
        """Refuse what has taken too long; look again when the oldest of the others would have."""
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._unfinished:
            oldest = next(iter(self._unfinished))
            if oldest.until > loop.time():
                self._timer = loop.call_at(oldest.until, self._check_time)
                return
            detail = f"the body was not complete after {self._timeout_s:g} s"
            self._refuse(oldest, partial(HttpProblem, 408, "body_timeout", detail))

    def _grown(self, reading: _Reading, size_bytes: int) -> None:
        if reading.refusal is not None:
            return
        reading.size_bytes += size_bytes
        self._total_bytes += size_bytes
        while self._total_bytes > self._max_total_bytes:
            largest = max(self._unfinished, key=lambda each: each.size_bytes)
            why = f"unfinished bodies hold more than {self._max_total_bytes} bytes"
            self._refuse(largest, partial(Unavailable, why))

    def _refuse(self, reading: _Reading, refusal: Callable[[], HttpProblem | Unavailable]) -> None:
        """End the reading of a body, at once where it waits for a part."""
        self._leave(reading)
        reading.refusal = refusal
        if reading.task is not None and reading.task is not asyncio.current_task():
            reading.task.cancel()

    def _leave(self, reading: _Reading) -> None:
        del self._unfinished[reading]
        self._total_bytes -= reading.size_bytes


def again(body: bytes | bytearray, receive: Receive) -> Receive:
    """`receive`, with a body that was read in front of it."""
    waiting = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def first_the_body() -> Message:
        return waiting.pop() if waiting else await receive()

    return first_the_body
