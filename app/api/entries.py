"""`POST /entries` as a bare ASGI endpoint: the hot path goes around framework and middleware.

The FastAPI application hands these requests over before its own stack, and documents them
(`app.api.schema`).
"""

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from time import perf_counter
from typing import Any, Final

from app.api.formats import answers_msgpack, body_is_json, encode
from app.api.problems import TRANSLATED, HttpProblem, problem_of
from app.api.security import Guard
from app.model.codec import RequestCodec
from app.model.weight import check_weight
from app.service.journal import Journal
from app.tokens import Scope as TokenScope
from app.wal.writer import Appended

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Observe = Callable[[Scope, int, float], None]

_log = logging.getLogger(__name__)

PATH: Final = "/entries"
_BODY_TIMEOUT_S: Final = 30.0
_DISCARD_TIMEOUT_S: Final = 5.0
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class ClientGone(Exception):
    """The client went away before its body was complete."""


class EntriesEndpoint:
    """Reads, decodes and checks a body, journals it, and answers once it is durable."""

    def __init__(self, journal: Journal, guard: Guard, observe: Observe) -> None:
        settings = journal.settings
        self._journal = journal
        self._guard = guard
        self._observe = observe
        self._max_body_bytes = settings.max_body_bytes
        self._max_entries = settings.max_entries
        self._codec = RequestCodec(settings.max_entries, settings.max_field_bytes)
        self._rejected = journal.metrics.rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        headers = _Headers(scope["headers"])
        incoming = _Body(receive)
        msgpack = answers_msgpack(headers.accept) if headers.accept else False
        more: dict[str, str] = {}
        try:
            answer: Any = await self._append(scope, headers, incoming)
            status, problem = 200, False
        except ClientGone:
            return
        except TRANSLATED as error:
            found = problem_of(error)
            status, problem, answer, more = found.status, True, found.document, found.headers
            self._rejected.labels(found.reason).inc()
        except Exception as error:  # noqa: BLE001 - the last resort: answered as a bare 500
            _log.exception("POST /entries failed")
            found = problem_of(error)
            status, problem, answer, more = found.status, True, found.document, found.headers
            self._rejected.labels(found.reason).inc()
        body, content_type = encode(answer, msgpack=msgpack, problem=problem)
        await _send(send, status, body, content_type, more)
        self._observe(scope, status, perf_counter() - started)
        if not incoming.complete:
            await self._discard(incoming)

    async def _append(self, scope: Scope, headers: "_Headers", incoming: "_Body") -> Appended:
        grant = self._guard.admit(scope, headers.authorization, TokenScope.WRITE)
        self._guard.charge(scope, grant, 0)
        json = body_is_json(headers.content_type)
        gzip = _is_gzip(headers.content_encoding)
        if headers.content_length > self._max_body_bytes:
            raise self._too_large()
        body = await self._read(incoming)
        if gzip:
            body = self._inflate(body)
        check_weight(
            body, json=json, max_body_bytes=self._max_body_bytes, max_entries=self._max_entries
        )
        request = self._codec.prepare(body, json=json)
        self._guard.charge(scope, grant, len(request.entries))
        return await self._journal.append(request)

    async def _read(self, incoming: "_Body") -> bytes | bytearray:
        """The body; time and size are bounded while it arrives, whatever was announced."""
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                body: bytes | bytearray = await incoming.part()
                if not incoming.complete:
                    body = bytearray(body)
                while not incoming.complete and len(body) <= self._max_body_bytes:
                    body += await incoming.part()
        except TimeoutError:
            detail = f"the body was not complete after {_BODY_TIMEOUT_S:.0f} s"
            raise HttpProblem(408, "body_timeout", detail) from None
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return body

    async def _discard(self, incoming: "_Body") -> None:
        """Take in what is left of a refused body, within limits.

        The answer is out already, but many clients read it only when they have sent everything.
        """
        left_bytes = self._max_body_bytes
        with suppress(ClientGone, TimeoutError):
            async with asyncio.timeout(_DISCARD_TIMEOUT_S):
                while left_bytes > 0 and not incoming.complete:
                    left_bytes -= len(await incoming.part())

    def _inflate(self, body: bytes | bytearray) -> bytes:
        """Decompress, never to more than a body may have."""
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        try:
            plain = inflater.decompress(body, self._max_body_bytes + 1)
        except zlib.error as error:
            raise HttpProblem(
                400, "undecodable_body", f"the body is not valid gzip: {error}"
            ) from None
        if len(plain) > self._max_body_bytes:
            raise self._too_large()
        if not inflater.eof or inflater.unused_data:
            raise HttpProblem(400, "undecodable_body", "the body is not one complete gzip stream")
        return plain

    def _too_large(self) -> HttpProblem:
        detail = f"the body is larger than {self._max_body_bytes} bytes"
        return HttpProblem(413, "body_too_large", detail)


class _Body:
    """A request's body as it arrives."""

    __slots__ = ("_receive", "complete")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def part(self) -> bytes:
        """The next part of it. Raises `ClientGone`."""
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self.complete = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


class _Headers:
    """The few headers that matter here, read in one pass."""

    __slots__ = ("accept", "authorization", "content_encoding", "content_length", "content_type")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.accept = self.content_type = self.content_encoding = ""
        self.authorization = b""
        self.content_length = 0
        for name, value in headers:
            if name == b"content-type":
                self.content_type = value.decode("latin-1")
            elif name == b"accept":
                text = value.decode("latin-1")
                self.accept = f"{self.accept},{text}" if self.accept else text
            elif name == b"authorization":
                several = (self.authorization, value)
                self.authorization = b",".join(several) if self.authorization else value
            elif name == b"content-length":
                self.content_length = int(value) if value.isdigit() else 0
            elif name == b"content-encoding":
                self.content_encoding = value.decode("latin-1")


def _is_gzip(content_encoding: str) -> bool:
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return False
    if name == "gzip":
        return True
    raise HttpProblem(
        415,
        "unsupported_encoding",
        f"content encoding {content_encoding[:100]!r}; gzip and identity are supported",
    )


async def _send(
    send: Send, status: int, body: bytes, content_type: str, more: dict[str, str]
) -> None:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in more.items()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
