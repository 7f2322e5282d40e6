"""`POST /entries` as a bare ASGI endpoint: the hot path goes around framework and middleware.

The FastAPI application hands these requests over before its own stack, and documents them
(`app.api.schema`).
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from time import perf_counter
from typing import Any, Final

from app.api.bodies import Bodies, IncomingBody, Message, Receive
from app.api.connections import WINDOW_BYTES, Connections, peer_of
from app.api.formats import answers_msgpack, body_is_json, encode
from app.api.problems import TRANSLATED, HttpProblem, body_too_large, problem_of
from app.api.scales import Scales
from app.api.security import Guard
from app.api.sockets import Peer
from app.chain import bulk
from app.model.codec import RequestCodec
from app.model.recognizer import LEAST_BYTES, Recognizer
from app.model.weight import is_light
from app.service.compiled import GATHERING, GRAMMAR, LANES, load_in_background
from app.service.journal import Journal
from app.tokens import Scope as TokenScope
from app.wal.writer import Appended

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

PATH: Final = "/entries"


class EntriesEndpoint:
    """Reads, decodes and checks a body, journals it, and answers once it is durable."""

    def __init__(self, journal: Journal, guard: Guard, connections: Connections) -> None:
        settings = journal.settings
        self._journal = journal
        self._guard = guard
        self._metrics = journal.metrics.http.route("POST", PATH)
        self._connections = connections
        self._max_body_bytes = settings.max_body_bytes
        most_bytes = max(settings.max_queue_bytes, settings.max_body_bytes)
        self._bodies = Bodies(settings.max_body_bytes, most_bytes, settings.body_timeout_s)
        self._is_recognizing = False
        self._recognizer = Recognizer(settings.max_field_bytes, settings.block_command_types)
        self._codec = RequestCodec(settings.max_entries, settings.max_field_bytes, self._recognizer)
        self._scales = Scales(
            self._codec,
            settings.max_body_bytes,
            settings.max_entries,
            most_bytes,
            settings.block_command_types,
        )
        self._rejected = journal.metrics.rejected
        self._broken = self._rejected.labels("incomplete_body")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        started = perf_counter()
        headers = _Headers(scope["headers"])
        peer = peer_of(scope)
        incoming = IncomingBody(receive, partial(self._connections.arrived, peer))
        msgpack = answers_msgpack(headers.accept) if headers.accept else False
        more: dict[str, str] = {}
        try:
            answer: Any = await self._append(scope, headers, incoming, peer)
            status, problem = 200, False
        except TRANSLATED as error:
            if incoming.broken:
                self._connections.broke_off(peer)
                if scope["http_version"] == "2":
                    # Its stream is gone, whichever side ended it: there is nobody to answer.
                    self._broken.inc()
                    return
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
        self._connections.answered(peer, len(body))
        self._metrics.observe(
            f"{status // 100}xx", perf_counter() - started, headers.content_length, len(body)
        )
        if not incoming.broken:
            await self._bodies.discard(incoming)
            if incoming.broken:
                self._connections.broke_off(peer)
            if not incoming.complete:
                # Over HTTP/1.1 the server itself may read it, and not say so.
                is_http1 = scope["http_version"].startswith("1")
                unread_bytes = self._max_body_bytes if is_http1 else 0
                self._connections.left_unread(peer, unread_bytes + WINDOW_BYTES)

    async def _append(
        self, scope: Scope, headers: "_Headers", incoming: IncomingBody, peer: Peer
    ) -> Appended:
        grant = self._guard.admit(scope, headers.authorization, TokenScope.WRITE)
        self._guard.charge(scope, grant, 0)
        json = body_is_json(headers.content_type)
        gzip = _is_gzip(headers.content_encoding)
        if headers.content_length > self._max_body_bytes:
            raise body_too_large(self._max_body_bytes)
        body = await self._bodies.read(incoming)
        if len(body) >= LEAST_BYTES and not self._is_recognizing:
            self._is_recognizing = True
            load_in_background(self._use_compiled, GRAMMAR, LANES, GATHERING)
        if gzip or not is_light(body, self._max_body_bytes):
            request = await self._scales.prepare(body, json=json, gzip=gzip)
        else:
            request = self._codec.prepare(body, json=json)
        del body
        self._guard.charge(scope, grant, len(request.keys))
        with self._connections.waiting_for_disk(peer):
            return await self._journal.append(request)

    def _use_compiled(self, grammar: Any, lanes: Any, gathering: Any) -> None:
        """Recognize entries from now on, and make blocks without decoding what is recognized."""
        bulk.use(lanes, gathering)
        self._recognizer.use(grammar)


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
