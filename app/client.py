"""An asynchronous client of the journal: MessagePack over HTTP/2, with retries that are safe.

    ClientError
    ├── Refused        the service answered with a problem (RFC 9457), retriable or not
    ├── Unreachable    no answer: what became of the entries is not known until they are sent again
    ├── BadAnswer      an answer that the protocol does not know
    └── GaveUp         the deadline passed while every attempt failed; `last` is the last failure

`append` sends the same bytes, hence the same `request_uuid`s, until it has an answer that settles
the matter: a lost acknowledgement comes back as a duplicate with its first `command_id`. What can't
succeed by itself (409, 413, 422, …) is never sent twice.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final, Self, TypeVar
from uuid import UUID

import httpx
import msgspec
from msgspec import Raw, Struct

from app.errors import EntryFault, JournalError
from app.model.codec import canonical_bytes
from app.model.entry import Entry

MSGPACK: Final = "application/msgpack"
JSON: Final = "application/json"
DEFAULT_URL: Final = "http://127.0.0.1:8080"
# What a proxy in between may answer in the service's place, without a problem document.
_PASSING_STATUSES: Final = frozenset({429, 502, 503, 504, 507})
_encoder: Final = msgspec.msgpack.Encoder()


class ClientError(JournalError):
    """A call to the journal did not succeed."""


class Refused(ClientError):
    """The service answered with a problem; nothing was written (except by an earlier attempt)."""

    def __init__(self, problem: "Problem", retry_after_s: float | None) -> None:
        super().__init__(problem.line())
        self.status = problem.status
        self.error_code = problem.error_code
        self.retriable = problem.retriable
        self.faults = tuple(problem.errors)
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """There was no answer: no connection, or it was lost, or it took too long."""


class BadAnswer(ClientError):
    """The answer is not one that the protocol knows. It is not known what became of the request."""


class GaveUp(ClientError):
    """Every attempt failed until the deadline. `last` is the failure of the last of `attempts`."""

    def __init__(self, attempts: int, last: ClientError) -> None:
        super().__init__(f"gave up after {attempts} attempt{'s' if attempts > 1 else ''}: {last}")
        self.attempts = attempts
        self.last = last


class Problem(Struct):
    """A problem document, with the extension members of the protocol."""

    status: int = 0
    title: str = ""
    detail: str | None = None
    error_code: int | None = None
    message: str | None = None
    retriable: bool = False
    errors: list[EntryFault] = []

    def line(self) -> str:
        """The problem in one line."""
        text = self.detail or self.message or self.title or "no reason given"
        return f"{self.error_code or self.status}: {' '.join(text.split())}"


class Duplicate(Struct, frozen=True):
    """An entry that had been journaled before, with the `command_id` it got then."""

    request_uuid: UUID
    command_id: int


class AppendResult(Struct, frozen=True):
    """The acknowledgement of `POST /entries`: every entry of the request is durable."""

    count: int
    first_command_id: int | None
    last_command_id: int | None
    wal_offset: int | None = None
    block_height: int | None = None
    duplicates: list[Duplicate] = []

    def command_ids(self, request_uuids: Sequence[UUID]) -> list[int]:
        """The `command_id` of every entry, given their `request_uuid`s in the order of the request.

        Raises `BadAnswer` when the answer does not fit the request.
        """
        known = {duplicate.request_uuid: duplicate.command_id for duplicate in self.duplicates}
        next_id = first = self.first_command_id or 0
        ids = []
        for request_uuid in request_uuids:
            command_id = known.get(request_uuid)
            if command_id is None:
                known[request_uuid] = command_id = next_id
            # An entry given twice in one request is its own duplicate: the first one took an id.
            if command_id == next_id and first:
                next_id += 1
            ids.append(command_id)
        last = next_id - 1 if first else None
        if len(ids) != self.count or last != self.last_command_id or 0 in ids:
            raise BadAnswer(
                f"the answer's {self.count} entries end at command_id {self.last_command_id}, "
                f"the request's {len(ids)} at {last}"
            )
        return ids


class EntryStatus(Struct, frozen=True):
    """Where a journaled entry is: `status` is "durable", "replicated" or "dead_letter"."""

    request_uuid: UUID
    command_id: int
    status: str
    block_height: int | None = None


class Checkpoint(Struct, frozen=True):
    """How far the journal is: offsets are logical WAL offsets in bytes."""

    environment: str
    wal_id: str
    wal_offset: int
    last_command_id: int
    last_l2_seq: int | None
    durable_offset: int
    unreplicated_bytes: int
    replication: str
    dead_letters: int


@dataclass(frozen=True, slots=True)
class Retry:
    """When to try again: delays that double, half of each by chance, never before `Retry-After`."""

    deadline_s: float = 60.0
    first_delay_s: float = 0.05
    longest_delay_s: float = 2.0

    def delay_s(self, attempt: int, retry_after_s: float | None, jitter: float) -> float:
        """The wait after failed attempt number `attempt` (from 1); `jitter` is in [0, 1)."""
        # The exponent is bounded because a float is.
        bound = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(attempt - 1, 64))
        return max(bound * (0.5 + jitter / 2), retry_after_s or 0.0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Time and chance as one seam: a monotonic clock and a sleep in seconds, jitter in [0, 1)."""

    now_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random


Answer = TypeVar("Answer")


class JournalClient:
    """A client of one journal, an asynchronous context manager; calls may run concurrently.

    `token` is shown to a service that has tokens. `verify` is what httpx takes: True, or an SSL
    context with the certificates to trust, and to show. `on_retry` is told each failure that is
    about to be retried, and the wait in seconds.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        retry: Retry = Retry(),
        answer_timeout_s: float = 30.0,
        verify: SSLContext | bool = True,
        on_retry: Callable[[ClientError, float], None] | None = None,
        timing: Timing = Timing(),
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retry = retry
        self._answer_timeout_s = answer_timeout_s
        self._on_retry = on_retry
        self._timing = timing
        self._url = url
        self._headers = {"accept": MSGPACK}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._transport = transport
        # Loading the trusted certificates takes long enough to do it once for all connections.
        self._tls = httpx.create_ssl_context(verify) if isinstance(verify, bool) else verify
        self._connections: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        self._idle.clear()
        while self._connections:
            await self._connections.pop().aclose()

    async def append(self, entries: Sequence[Entry]) -> AppendResult:
        """Journal `entries`: returns once all of them are durable.

        Raises `Refused` when the service will not have them, `GaveUp` when there was no
        acknowledgement until the deadline: the entries may have been journaled then, and may be
        sent again.
        """
        body = _encoder.encode({"entries": [Raw(canonical_bytes(entry)) for entry in entries]})
        return await self.append_encoded(body, MSGPACK)

    async def append_encoded(self, body: bytes, content_type: str) -> AppendResult:
        """Journal a request body that is already encoded, under the same promise as `append`."""
        deadline_s = self._timing.now_s() + self._retry.deadline_s
        attempts = 0
        while True:
            attempts += 1
            left_s = deadline_s - self._timing.now_s()
            try:
                return await self._call(
                    AppendResult,
                    "POST",
                    "/entries",
                    timeout_s=min(self._answer_timeout_s, max(left_s, 0.001)),
                    content=body,
                    headers={"content-type": content_type},
                )
            except (Refused, Unreachable) as error:
                if isinstance(error, Refused) and not error.retriable:
                    raise
                await self._wait_before_retry(attempts, deadline_s, error)

    async def entry(self, request_uuid: UUID) -> EntryStatus | None:
        """Look an entry up; None when the journal does not know it."""
        try:
            return await self._call(EntryStatus, "GET", f"/entries/{request_uuid}")
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def flush(self, timeout_s: float = 30.0) -> Checkpoint:
        """Wait until all that was accepted before is replicated. Raises `Refused` (504) if late."""
        return await self._call(
            Checkpoint,
            "POST",
            "/flush",
            # The service keeps the time; this is only for one that does not answer at all.
            timeout_s=timeout_s + self._answer_timeout_s,
            params={"timeout_s": timeout_s},
        )

    async def checkpoint(self) -> Checkpoint:
        """How far the journal is."""
        return await self._call(Checkpoint, "GET", "/checkpoint")

    async def _wait_before_retry(
        self, attempts: int, deadline_s: float, error: ClientError
    ) -> None:
        retry_after_s = error.retry_after_s if isinstance(error, Refused) else None
        delay_s = self._retry.delay_s(attempts, retry_after_s, self._timing.jitter())
        if self._timing.now_s() + delay_s >= deadline_s:
            raise GaveUp(attempts, error) from error
        if self._on_retry is not None:
            self._on_retry(error, delay_s)
        await self._timing.sleep(delay_s)

    def _take_connection(self) -> httpx.AsyncClient:
        """A connection for one request alone; there are as many as calls that run at once.

        Streams do not share one: in httpcore (1.0) a stream that waits for flow-control window may
        miss the update that another stream's read brought in, and then stalls until it times out.
        """
        if self._idle:
            return self._idle.pop()
        # Without HTTP/1.1 a cleartext connection speaks HTTP/2 with prior knowledge; TLS agrees by
        # ALPN. Proxies of the environment are left aside: they would break prior knowledge.
        connection = httpx.AsyncClient(
            base_url=self._url,
            http1=False,
            http2=True,
            verify=self._tls,
            trust_env=False,
            transport=self._transport,
            headers=self._headers,
        )
        self._connections.append(connection)
        return connection

    async def _call(
        self,
        kind: type[Answer],
        method: str,
        path: str,
        *,
        timeout_s: float | None = None,
        **request: Any,
    ) -> Answer:
        timeout = self._answer_timeout_s if timeout_s is None else timeout_s
        connection = self._take_connection()
        try:
            response = await connection.request(method, path, timeout=timeout, **request)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise ClientError(f"{self._url}: {error}") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self._url}: no answer: {reason}") from error
        finally:
            self._idle.append(connection)
        if response.status_code != 200:
            raise _refusal(response)
        return _decoded(response, kind)


def _decoded(response: httpx.Response, kind: type[Answer]) -> Answer:
    """Decode a body in the format its content type names. Raises `BadAnswer`."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip()
    try:
        if content_type.endswith("json"):
            return msgspec.json.decode(response.content, type=kind)
        return msgspec.msgpack.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        answer = f"a {response.status_code} answer of {content_type or 'no type'}"
        raise BadAnswer(f"{answer}: {error}") from error


def _refusal(response: httpx.Response) -> ClientError:
    try:
        problem = _decoded(response, Problem)
    except BadAnswer:
        passing = response.status_code in _PASSING_STATUSES
        problem = Problem(title=response.reason_phrase, retriable=passing)
    problem.status = response.status_code
    return Refused(problem, _retry_after_s(response.headers.get("retry-after")))


def _retry_after_s(value: str | None) -> float | None:
    """The seconds of a `Retry-After`; the date form would need a wall clock, and is left aside."""
    return float(value) if value is not None and value.isascii() and value.isdigit() else None
