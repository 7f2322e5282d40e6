"""The parts of the service that make blocks and serve them: real log, store and routes.

Postgres is what a test names, out of reach by default.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from msgspec.structs import replace
from starlette.exceptions import HTTPException
from starlette.types import Message, Scope

from app.access import Access
from app.api import block_stream, blocks, proofs
from app.api.answers import on_error, on_http_exception, on_invalid_parameter
from app.api.connections import Connections
from app.api.large_answers import LargeAnswers
from app.api.problems import TRANSLATED
from app.api.security import Guard
from app.api.turns import Turns
from app.chain.header import Delegation, Header
from app.chain.store import CommitmentStore
from app.errors import DatabaseUnavailable
from app.model.entry import Entry
from app.replication.reader import EnvironmentSummary, Reader
from app.service.block_view import BlockParts, BlockView
from app.service.blocks import BlockProducer, HotKey
from app.service.journal import Journal
from app.service.logged_blocks import LoggedBlocks
from app.service.opening import open_log, open_store
from app.wal.files import FileSystem
from app.wal.sync import FdatasyncSyncer
from app.wal.writer import Appended, Committed, Outcome, WalWriter
from tests.support.block_chain import make_delegation
from tests.support.running_writer import request
from tests.support.wal_files import ENVIRONMENT, make_settings

_NO_LIMIT: Final = 1 << 40


class FixedKey:
    """Signs nothing, but says who would: enough where nobody checks."""

    def __init__(self, delegation: Delegation) -> None:
        self.delegation = delegation
        self.address = delegation.delegate

    def sign_header(self, header: Header) -> Header:
        return replace(header, signature=b"\x07" * 65)


class FixedSigner:
    """Gives one key for ever, or none."""

    fault = None

    def __init__(self, key: HotKey | None = None) -> None:
        self.key = key

    def current(self) -> HotKey | None:
        return self.key


class BlockService:
    """A writer with blocks, the view of them and the routes over it, on the running event loop."""

    def __init__(self, data_dir: Path, dsn: str | None = None, **settings: Any) -> None:
        self.settings = make_settings(data_dir, **{"allow_new_wal": True, **settings})
        self.journal = Journal(self.settings)
        """Not opened: it lends what opens the store anew, and tells how the parts are."""
        self.signer = FixedSigner()
        self.retained = 0
        self.database_down = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        files = FileSystem()
        store = open_store(self.settings)
        opened = open_log(
            files, self.settings, FdatasyncSyncer(files), EnvironmentSummary(), lambda: 1, store
        )
        self.producer = BlockProducer(
            store,
            frozenset({"TickSnapshot"}),
            self.signer,
            opened.log.wal_id,
            opened.log.end,
            partial(self.journal._reopen_store, opened.log.wal_id),  # noqa: SLF001 - the real one
        )
        self.journal._producer = self.producer  # noqa: SLF001 - as in `Journal.open`
        self.writer = WalWriter(
            opened.log,
            opened.index,
            blocks=self.producer,
            next_command_id=opened.next_command_id,
            max_batch_entries=1,
            max_batch_bytes=_NO_LIMIT,
            queue_entries=1 << 20,
            queue_bytes=_NO_LIMIT,
            deliver=self._deliver,
            on_fatal=self._failed,
        )
        self.view = BlockView()
        self._reader = Reader(dsn or f"postgresql:///x?host={data_dir}", ENVIRONMENT)
        self.failure: BaseException | None = None
        self.app = make_app(self.view)
        self.view.opened(
            BlockParts(
                self.producer,
                LoggedBlocks(files, self.settings.wal_dir, lambda: self.retained),
                self._reader.block_commands,
                self._look_up,
            )
        )
        self.writer.start()

    @property
    def store(self) -> CommitmentStore:
        return self.view.store

    def sign(self, delegation: Delegation | None = None) -> None:
        """Name a signer in the blocks from now on."""
        self.signer.key = FixedKey(delegation or make_delegation())

    async def commit(self, *entries: Entry) -> Appended:
        """Journal entries as one request, which makes one batch."""
        return (await self.commit_all([entries]))[0]

    async def commit_all(self, batches: list[tuple[Entry, ...]]) -> list[Appended]:
        """Journal batches, one after the other."""
        outcomes = await self.outcomes(batches)
        return [outcome for outcome in outcomes if isinstance(outcome, Appended)]

    async def outcomes(self, batches: list[tuple[Entry, ...]]) -> list[Outcome]:
        """What becomes of batches that are submitted one after the other."""
        futures: list[asyncio.Future[Outcome]] = [self._loop.create_future() for _ in batches]
        for entries, future in zip(batches, futures, strict=True):
            self.writer.submit(request(*entries), future.set_result)
        return await asyncio.wait_for(asyncio.gather(*futures), 60)

    async def close(self) -> None:
        """Stop everything; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self.view.close()
        await asyncio.to_thread(self.writer.close)
        await self._reader.close()
        self.store.close()

    def _deliver(self, committed: Committed) -> None:
        self._loop.call_soon_threadsafe(partial(self._committed, committed))

    def _committed(self, committed: Committed) -> None:
        if committed.block_height is not None:
            self.view.produced()
        for submission, outcome in committed.outcomes:
            submission.deliver(outcome)

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    async def _look_up(self, request_uuid: UUID) -> object | None:
        known = self.writer.index.get(request_uuid.int)
        if known is None and self.database_down:
            raise DatabaseUnavailable("Postgres is down")
        return known


@asynccontextmanager
async def serving(service: BlockService) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's routes, without a server in between."""
    transport = httpx.ASGITransport(app=service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://journal") as client:
        yield client


def make_app(view: BlockView) -> FastAPI:
    """The block routes as the application has them."""
    app = FastAPI(
        exception_handlers={
            HTTPException: on_http_exception,
            RequestValidationError: on_invalid_parameter,
            **dict.fromkeys(TRANSLATED, on_error),
        }
    )
    app.state.blocks = view
    app.state.streams = block_stream.Streams()
    app.state.turns = Turns(_NO_LIMIT)
    app.state.connections = Connections(_NO_LIMIT, _NO_LIMIT, _NO_LIMIT)
    app.state.large_answers = LargeAnswers(app.state.turns, app.state.connections)
    app.state.guard = Guard(Access(None))
    for each in (block_stream, blocks, proofs):
        app.include_router(each.router)
    return app


class SlowReader:
    """A client of a stream that takes what is sent only when it is told to."""

    def __init__(self, service: BlockService, query: str = "", **headers: str) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.received = b""
        self.sends = 0
        """How many times the service has begun to send a part of the body."""
        self._allowed = asyncio.Semaphore(0)
        self._gone = asyncio.Event()
        self._arrived = asyncio.Condition()
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/blocks/stream",
            "raw_path": b"/blocks/stream",
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        self.task = asyncio.create_task(service.app(scope, self._receive, self._send))

    def take(self, sends: int) -> None:
        """Take so many parts more."""
        for _ in range(sends):
            self._allowed.release()

    def leave(self) -> None:
        """Close the connection."""
        self._gone.set()

    async def until(self, text: bytes) -> None:
        """Read on until `text` has come in."""
        await self.wait_for(lambda: text in self.received, take=True)

    async def wait_for(self, condition: Any, *, take: bool = False) -> None:
        """Wait for a condition on what has come in or been offered."""
        async with asyncio.timeout(20), self._arrived:
            while not condition():
                assert not self.task.done(), (self.status, self.received[-1000:])
                if take:
                    self.take(1)
                await self._arrived.wait()

    @property
    def events(self) -> list[dict[str, str]]:
        """The events that have come in whole."""
        return [
            dict(line.split(": ", 1) for line in text.split("\n"))
            for text in self.received.decode().split("\n\n")[:-1]
            if text.startswith("event: ")
        ]

    @property
    def heights(self) -> list[int]:
        return [int(event["id"]) for event in self.events]

    async def _receive(self) -> Message:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        async with self._arrived:
            self.sends += 1
            self._arrived.notify_all()
        await self._allowed.acquire()
        async with self._arrived:
            self.received += message["body"]
            self._arrived.notify_all()
