"""`GET /blocks/stream`: blocks as server-sent events (WHATWG HTML, section 9.2).

Every reader pulls from the commitment store at its own pace, a few blocks at a time, and sends
before it pulls again. So nothing is queued for it, however slow it is, and the writer never learns
that it exists.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Header, Query, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.answers import documented
from app.api.block_answers import BLOCK_EXAMPLE, block_answer
from app.api.block_source import BlockSource, blocks_of
from app.api.security import Guard, authorization_of
from app.chain.store import StoredBlock
from app.errors import StoreFailed, Unavailable
from app.model.entry import MAX_INT64

router: Final = APIRouter()

MAX_STREAMS: Final = 100
HEARTBEAT_S: Final = 15.0
_PULLED_BLOCKS: Final = 32
_RETRY_MS: Final = 3000
_EVENT_STREAM: Final = "text/event-stream"
_encode: Final = msgspec.json.Encoder().encode


class Streams:
    """How many streams are open, so that they can't take all of the server's places."""

    def __init__(self, limit: int = MAX_STREAMS) -> None:
        self.limit = limit
        self.open = 0


class _BlockStream(StreamingResponse):
    """Counts itself for as long as it is open."""

    media_type = _EVENT_STREAM

    def __init__(self, streams: Streams, events: AsyncIterator[bytes]) -> None:
        # Proxies must neither keep nor collect it.
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("head"):
            # It would have no end.
            await Response(headers=dict(self.headers))(scope, receive, send)
            return
        self._streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1


@router.get(
    "/blocks/stream",
    response_class=Response,
    responses={
        200: {
            "description": "One `block` event per block, its height for the event id",
            "content": {
                _EVENT_STREAM: {
                    "schema": {"type": "string"},
                    "example": f"event: block\nid: 0\ndata: {_encode(BLOCK_EXAMPLE).decode()}\n\n",
                }
            },
        },
        **documented(422, 503),
    },
    summary="Blocks as they come, as server-sent events",
)
async def stream_blocks(
    request: Request,
    after: Annotated[
        int | None,
        Query(
            ge=0, le=MAX_INT64, description="only blocks above this height (default: every block)"
        ),
    ] = None,
    last_event_id: Annotated[
        int | None,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=MAX_INT64,
            description="the height of the last block that came in; wins over `after`",
        ),
    ] = None,
) -> Response:
    """Every block above `after`, in order, then each new one once it is durable.

    The stream stays open; comments show that it lives. The service's shutdown ends it, and so does
    the end of the token that it was opened with. It goes on where it was when a client connects
    anew with `Last-Event-ID`, as browsers do by themselves. The data of an event is the block in
    JSON, as `GET /blocks/{height}` has it.
    """
    source = blocks_of(request)
    # Raises while there is none: a status can only be sent before the first event.
    _ = source.store
    streams: Streams = request.app.state.streams
    if source.closing:
        raise Unavailable("shutting down")
    if streams.open >= streams.limit:
        raise Unavailable(f"{streams.limit} block streams are open, and no more are served")
    behind = after if last_event_id is None else last_event_id
    guard: Guard = request.app.state.guard
    may_read = partial(guard.trusts, request.scope, authorization_of(request))
    return _BlockStream(streams, block_events(source, behind, may_read))


async def block_events(
    source: BlockSource,
    after: int | None,
    may_read: Callable[[], bool],
    heartbeat_s: float = HEARTBEAT_S,
) -> AsyncGenerator[bytes, None]:
    """The events above a height as they go out, a comment after each `heartbeat_s` without any.

    They end with the right to read, which is asked for before each time that something goes out.
    """
    yield f"retry: {_RETRY_MS}\n\n".encode()
    while not source.closing and may_read():
        height = 0 if after is None else after + 1
        try:
            blocks = source.store.blocks(after, _PULLED_BLOCKS, descending=False)
        except (StoreFailed, Unavailable):
            # It is opened anew: the client goes on from its last event.
            return
        if blocks:
            yield b"".join(map(_event, blocks))
            after = blocks[-1].header.batch_seq
            # Sending need not wait: others get their turn all the same.
            await asyncio.sleep(0)
        elif not await source.wait_for_block(height, heartbeat_s) and not source.closing:
            yield b": still here\n\n"


def _event(block: StoredBlock) -> bytes:
    data = _encode(block_answer(block))
    return b"event: block\nid: %d\ndata: %b\n\n" % (block.header.batch_seq, data)
