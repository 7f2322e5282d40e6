"""Request bodies while they arrive: each within its limits, and all together within others.

A client can open hundreds of streams and send the beginning of a large body on each. So what all
unfinished bodies hold is bounded: beyond it the largest of them is refused, which leaves room to
small ones whatever a hostile client does; beyond so many, the oldest one is.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from app.api.problems import HttpProblem
from app.errors import Unavailable

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

BODY_TIMEOUT_S: Final = 30.0
MAX_UNFINISHED: Final = 4096
# Of calls that have no use for a body.
MAX_IDLE_BODY_BYTES: Final = 64 << 10
_IDLE_BODY_TIMEOUT_S: Final = 10.0
_DISCARD_TIMEOUT_S: Final = 5.0


class IncomingBody:
    """A request's body as it arrives."""

    __slots__ = ("_receive", "complete")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def part(self) -> bytes:
        """The next part of it. Raises a 400 when the client has left, or sent what is no body.

        The server does not tell which; the second kind of client awaits an answer.
        """
        message = await self._receive()
        if message["type"] != "http.request":
            detail = "the body broke off or is not framed as HTTP asks for"
            raise HttpProblem(400, "incomplete_body", detail)
        self.complete = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


class _Reading:
    """A body that is being read: how much of it is there, and why it was refused, if it was."""

    __slots__ = ("limit", "refusal", "size_bytes")

    def __init__(self, limit: asyncio.Timeout) -> None:
        self.limit = limit
        self.size_bytes = 0
        self.refusal = ""


class Bodies:
    """Reads bodies of at most `max_body_bytes`, unfinished ones of `max_total_bytes` together."""

    def __init__(
        self, max_body_bytes: int, max_total_bytes: int, max_unfinished: int = MAX_UNFINISHED
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_total_bytes = max_total_bytes
        self._max_unfinished = max_unfinished
        self._total_bytes = 0
        # In the order in which they began.
        self._unfinished: dict[_Reading, None] = {}

    async def read(self, incoming: IncomingBody) -> bytes | bytearray:
        """A whole body; time and size are bounded while it arrives, whatever was announced.

        Raises `Unavailable` (refused in favour of others), or a 400, 408 or 413.
        """
        reading = None
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S) as limit:
                reading = self._began(limit)
                body: bytes | bytearray = await incoming.part()
                if not incoming.complete:
                    body = bytearray(body)
                    self._grown(reading, len(body))
                while not incoming.complete and len(body) <= self._max_body_bytes:
                    part = await incoming.part()
                    body += part
                    self._grown(reading, len(part))
        except TimeoutError:
            if reading is not None and reading.refusal:
                raise Unavailable(reading.refusal) from None
            detail = f"the body was not complete after {BODY_TIMEOUT_S:.0f} s"
            raise HttpProblem(408, "body_timeout", detail) from None
        finally:
            if reading is not None and not reading.refusal:
                self._leave(reading)
        if len(body) > self._max_body_bytes:
            raise self.too_large()
        return body

    async def discard(self, incoming: IncomingBody) -> None:
        """Take in what is left of a refused body, within limits.

        The answer is out already, but many clients read it only when they have sent everything.
        """
        left_bytes = self._max_body_bytes
        with suppress(HttpProblem, TimeoutError):
            async with asyncio.timeout(_DISCARD_TIMEOUT_S):
                while left_bytes > 0 and not incoming.complete:
                    left_bytes -= len(await incoming.part())

    def too_large(self) -> HttpProblem:
        """The refusal of a body that is over `max_body_bytes`."""
        detail = f"the body is larger than {self._max_body_bytes} bytes"
        return HttpProblem(413, "body_too_large", detail)

    def _began(self, limit: asyncio.Timeout) -> _Reading:
        if len(self._unfinished) >= self._max_unfinished:
            oldest = next(iter(self._unfinished))
            self._refuse(oldest, f"more than {self._max_unfinished} bodies are on their way")
        reading = _Reading(limit)
        self._unfinished[reading] = None
        return reading

    def _grown(self, reading: _Reading, size_bytes: int) -> None:
        if reading.refusal:
            return
        reading.size_bytes += size_bytes
        self._total_bytes += size_bytes
        while self._total_bytes > self._max_total_bytes:
            largest = max(self._unfinished, key=lambda each: each.size_bytes)
            self._refuse(largest, f"unfinished bodies hold more than {self._max_total_bytes} bytes")

    def _refuse(self, reading: _Reading, why: str) -> None:
        """End the reading of a body the next time that it waits for a part."""
        self._leave(reading)
        reading.refusal = why
        if not reading.limit.expired():
            reading.limit.reschedule(asyncio.get_running_loop().time())

    def _leave(self, reading: _Reading) -> None:
        del self._unfinished[reading]
        self._total_bytes -= reading.size_bytes


async def take_in(receive: Receive) -> Receive:
    """Read the body of a call that has no use for one, and hand it on to be read again.

    Left unread, it would wait in the server as long as the call takes, whatever its size. Raises
    a 400, 408 or 413.
    """
    incoming = IncomingBody(receive)
    body = b""
    try:
        async with asyncio.timeout(_IDLE_BODY_TIMEOUT_S):
            while not incoming.complete:
                body += await incoming.part()
                if len(body) > MAX_IDLE_BODY_BYTES:
                    detail = f"more than {MAX_IDLE_BODY_BYTES} bytes for a call that takes no body"
                    raise HttpProblem(413, "body_too_large", detail)
    except TimeoutError:
        detail = f"the body was not complete after {_IDLE_BODY_TIMEOUT_S:.0f} s"
        raise HttpProblem(408, "body_timeout", detail) from None
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
