"""Answers that grow with a block, made and sent a part at a time.

Each part takes a turn, so that entries and other calls have as much time as all such answers
together. A few are made at once, since each holds the record that it is made from; others wait. One
whose client has left is not made any further.

None is sent before all of it is made: it can still become a problem, its length is known, and a
client that takes nothing keeps no place. What waits for clients is bounded by `Connections`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from app.api.answers import prefers_msgpack
from app.api.caching import cache_headers, is_held, tag_of
from app.api.connections import Connections, peer_of
from app.api.formats import JSON, MSGPACK
from app.api.turns import Turns
from app.errors import Unavailable

MAX_MADE_AT_ONCE: Final = 2
# As many as an honest client may ask for over one connection of HTTP/2.
MAX_WAITING: Final = 100
# Nobody reads it: the client has left. Not of RFC 9110, but what servers count it as.
_CLIENT_LEFT: Final = 499


class LargeAnswers:
    """Makes them, so many at once."""

    def __init__(self, turns: Turns, connections: Connections) -> None:
        self._turns = turns
        self._connections = connections
        self._places = asyncio.Semaphore(MAX_MADE_AT_ONCE)
        self._waiting = 0

    async def answer(
        self,
        request: Request,
        begin: Callable[[], Awaitable[Iterator[bytes]]],
        *,
        immutable: bool,
        tag: str | None = None,
    ) -> Response:
        """The answer whose parts are what `begin` returns, which is called in a place for it.

        It may be kept, as `tagged_answer` says.

        Raises `Unavailable` when as many wait for a place as may, and what `begin` and its parts
        raise.
        """
        made = asyncio.create_task(self._made(request, begin), name="large-answer")
        left = asyncio.create_task(_left(request.receive), name="client-of-large-answer")
        try:
            await asyncio.wait({made, left}, return_when=asyncio.FIRST_COMPLETED)
            parts = made.result() if made.done() else None
        finally:
            made.cancel()
            left.cancel()
            await asyncio.gather(made, left, return_exceptions=True)
        if parts is None:
            return Response(status_code=_CLIENT_LEFT)
        msgpack = prefers_msgpack(request)
        headers = cache_headers(tag or tag_of(parts), msgpack=msgpack, immutable=immutable)
        if is_held(request, headers["etag"]):
            return Response(status_code=304, headers=headers)
        headers["content-type"] = MSGPACK if msgpack else JSON
        return _InParts(parts, self._turns, self._connections, headers)

    async def _made(
        self, request: Request, begin: Callable[[], Awaitable[Iterator[bytes]]]
    ) -> list[bytes] | None:
        """All parts; None where the connection has been cut off meanwhile."""
        peer = peer_of(request.scope)
        made: list[bytes] = []
        async with self._place():
            parts = await begin()
            while True:
                await self._turns.take(going_on=True)
                if self._connections.is_cut(peer):
                    return None
                part = next(parts, None)
                if part is None:
                    return made
                made.append(part)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise Unavailable(f"{MAX_WAITING} large answers wait to be made")
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()


class _InParts(Response):
    """Sends a part in each turn: the server copies it before others go on."""

    def __init__(
        self,
        parts: list[bytes],
        turns: Turns,
        connections: Connections,
        headers: Mapping[str, str],
    ) -> None:
        self._parts = deque(parts)
        self._turns = turns
        self._connections = connections
        self._size_bytes = sum(map(len, parts))
        super().__init__(headers={**headers, "content-length": str(self._size_bytes)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. What the server does not take yet counts as what the client does not."""
        if scope.get("head"):
            await Response(headers=self.headers)(scope, receive, send)
            return
        status, headers = self.status_code, self.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})
        peer, kept_bytes = peer_of(scope), self._size_bytes
        self._connections.keeps(peer, kept_bytes)
        try:
            while self._parts:
                await self._turns.take(going_on=True)
                part = self._parts.popleft()
                more = bool(self._parts)
                await send({"type": "http.response.body", "body": part, "more_body": more})
                self._connections.keeps(peer, -len(part))
                kept_bytes -= len(part)
        finally:
            self._connections.keeps(peer, -kept_bytes)


async def _left(receive: Receive) -> None:
    """Wait until the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
