"""A journal in memory, over real HTTP/2 on a loopback port, with faults on demand.

It gives out `command_id`s and tells duplicates as the protocol says. Each request to `/entries`
consumes one of `faults`: what the service does instead of answering, or on top (None: nothing).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any
from uuid import UUID

import msgpack
import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded


class Cut(Enum):
    """No answer: the connection is lost before or behind the journaling, or nothing ever comes."""

    BEFORE = auto()
    BEHIND = auto()
    SILENT = auto()


@dataclass(frozen=True)
class Answer:
    """An answer given in place of the journal's."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/msgpack"

    def encoded(self) -> bytes:
        if self.content_type.endswith("json"):
            return msgspec.json.encode(self.body)
        packed: bytes = msgpack.packb(self.body)
        return packed


def problem(status: int, *, retriable: bool, retry_after: str | None = None, **more: Any) -> Answer:
    """A problem document in MessagePack."""
    headers = {} if retry_after is None else {"retry-after": retry_after}
    body = {"status": status, "error_code": status * 100 + 1, "retriable": retriable, **more}
    return Answer(status, {"title": "a fault", "detail": "as asked for", **body}, headers)


INITIAL_WINDOW_BYTES = 65_535


@dataclass
class H2Service:
    """The journal behind the socket. `bodies` are those of all requests to `/entries`."""

    port: int = 0
    faults: list[Cut | Answer | None] = field(default_factory=list)
    command_ids: dict[UUID, int] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    on_request: Callable[[], None] = lambda: None
    # Sends nothing, answers and window updates included, until so many bytes of bodies are there.
    silent_until_bytes: int = 0
    received_bytes: int = 0
    flushes: set[Callable[[], None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, content_type: str, body: bytes) -> Answer | Cut:
        """The answer to a request, or why there is none."""
        self.paths.append(path)
        if not path.startswith("/entries"):
            return Answer(200, _CHECKPOINT)
        if body:
            return self._append(content_type, body)
        return problem(404, retriable=False)

    def _append(self, content_type: str, body: bytes) -> Answer | Cut:
        self.bodies.append(body)
        self.on_request()
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, Answer) or fault is Cut.BEFORE or fault is Cut.SILENT:
            return fault
        answer = self._journal(content_type, body)
        return fault or answer

    def _journal(self, content_type: str, body: bytes) -> Answer:
        if content_type == "application/json":
            uuids = [UUID(entry["request_uuid"]) for entry in msgspec.json.decode(body)["entries"]]
        else:
            entries = msgpack.unpackb(body)["entries"]
            uuids = [UUID(bytes=entry["request_uuid"]) for entry in entries]
        duplicates, fresh = [], []
        for uuid in uuids:
            if uuid in self.command_ids:
                duplicates.append(
                    {"request_uuid": uuid.bytes, "command_id": self.command_ids[uuid]}
                )
            else:
                self.command_ids[uuid] = len(self.command_ids) + 1
                fresh.append(self.command_ids[uuid])
        return Answer(
            200,
            {
                "count": len(uuids),
                "first_command_id": fresh[0] if fresh else None,
                "last_command_id": fresh[-1] if fresh else None,
                "wal_offset": 4096,
                "block_height": None,
                "duplicates": duplicates,
            },
        )


@asynccontextmanager
async def h2_service(service: H2Service | None = None) -> AsyncIterator[H2Service]:
    """Serve on a free port (or again on the one that `service` has) until the block ends."""
    service = service or H2Service()
    writers: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        try:
            await _speak(service, reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", service.port)
    service.port = server.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


async def _speak(
    service: H2Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    connection = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    connection.initiate_connection()
    requests: dict[int, tuple[dict[str, str], bytearray]] = {}

    def send() -> None:
        if not writer.is_closing():
            writer.write(connection.data_to_send())

    service.flushes.add(send)
    while True:
        if service.received_bytes >= service.silent_until_bytes:
            for flush in service.flushes:
                flush()
        data = await reader.read(1 << 16)
        if not data:
            return
        for event in connection.receive_data(data):
            if _take(service, connection, requests, event):
                return


def _take(
    service: H2Service,
    connection: H2Connection,
    requests: dict[int, tuple[dict[str, str], bytearray]],
    event: Event,
) -> bool:
    """Take in one event; whether the connection is to be cut."""
    if isinstance(event, RequestReceived):
        headers = {str(name): str(value) for name, value in event.headers or ()}
        requests[event.stream_id] = (headers, bytearray())
    elif isinstance(event, DataReceived):
        requests[event.stream_id][1].extend(event.data)
        service.received_bytes += len(event.data)
        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, StreamEnded):
        headers, body = requests.pop(event.stream_id)
        answer = service.answer(headers[":path"], headers.get("content-type", ""), bytes(body))
        if not isinstance(answer, Answer):
            return answer is not Cut.SILENT
        _send(connection, event.stream_id, answer)
    return False


def _send(connection: H2Connection, stream_id: int, answer: Answer) -> None:
    headers = [(":status", str(answer.status)), ("content-type", answer.content_type)]
    connection.send_headers(stream_id, headers + list(answer.headers.items()))
    connection.send_data(stream_id, answer.encoded(), end_stream=True)


_CHECKPOINT = {
    "environment": "test",
    "wal_id": "w",
    "wal_offset": 10,
    "last_command_id": 3,
    "last_l2_seq": 0,
    "durable_offset": 20,
    "unreplicated_bytes": 10,
    "replication": "catching_up",
    "dead_letters": 0,
}
