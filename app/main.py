"""The application: `create_app(settings)`, and `app.main:app` for any ASGI server.

Starting happens in the background, so that `/healthz` and a clear 503 are there from the first
moment.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from threading import Timer
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from app.access import Access
from app.api import block_stream, blocks, proofs
from app.api.answers import (
    on_error,
    on_http_exception,
    on_invalid_parameter,
    problem_response,
)
from app.api.bodies import Bodies, IncomingBody, again
from app.api.connections import Connections, max_connections, peer_of
from app.api.entries import PATH as ENTRIES_PATH
from app.api.entries import EntriesEndpoint
from app.api.large_answers import LargeAnswers
from app.api.problems import TRANSLATED, HttpProblem, problem_of
from app.api.routes import Flushes, router
from app.api.schema import complete
from app.api.security import Guard, Security
from app.api.sockets import Peer
from app.api.turns import Turns
from app.errors import JournalError, SettingsError, Unavailable
from app.logs import configure_logging
from app.service.journal import EXIT_REFUSED, Journal, stop_at_once
from app.settings import Settings, load_settings
from app.tasks import start_lasting

_log = logging.getLogger(__name__)

# The server's supervisor asks the worker to drain with the first, is told that it may stop with the
# second, and asks the worker to read the tokens again with the third.
DRAIN_SIGNAL: Final = signal.SIGUSR1
DRAINED_SIGNAL: Final = signal.SIGUSR2
RELOAD_SIGNAL: Final = signal.SIGRTMIN
# How long a connection may stay open that its client does not close: the server would wait for it.
_LINGER_S: Final = 2.0
# How many may be in progress at once of all calls but `POST /entries`: long polls and streams.
_MAX_CALLS: Final = 1024
# Of calls that have no use for a body: one, and all that are on their way.
_MAX_BODY_BYTES: Final = 64 << 10
_MAX_BODIES_BYTES: Final = 16 << 20
# Whatever library makes a file below the data directory, it is the owner's alone.
_PRIVATE_UMASK: Final = 0o077
SUPERVISED_ENV: Final = "_JOURNAL_SUPERVISOR_PID"


class JournalApp(FastAPI):
    """FastAPI, but `POST /entries` goes straight to its endpoint, and HEAD works like GET."""

    entries: EntriesEndpoint
    connections: Connections
    turns: Turns
    bodies: Bodies
    calls_in_progress = 0
    _description: bytes | None = None

    def setup(self) -> None:
        """FastAPI's own pages, but the description of the API is rendered once.

        What its page loads comes from here, too: FastAPI's own has scripts of another host, which
        could call whatever the browser may, and is empty where that host can't be reached.
        """
        self._describing = asyncio.Lock()
        self.add_route(str(self.openapi_url), self._describe, include_in_schema=False)
        self.add_route("/docs", self._show, include_in_schema=False)
        self.mount("/docs/assets", StaticFiles(packages=[("fastapi_swagger", "resources")]))
        super().setup()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        peer = peer_of(scope)
        self.connections.began(peer)
        try:
            if self.connections.is_cut(peer):
                return
            if scope["path"] == ENTRIES_PATH and scope["method"] == "POST":
                await self.entries(scope, receive, send)
            else:
                await self._call(peer, scope, receive, self.connections.counting(peer, send))
        finally:
            self.connections.ended(peer)

    async def _call(self, peer: Peer, scope: Scope, receive: Receive, send: Send) -> None:
        """Any call but `POST /entries`: so many at once, and without a body to speak of."""
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET", "head": True}, _without_body(send)
        incoming = IncomingBody(receive, partial(self.connections.arrived, peer))
        try:
            # Left unread, it would wait in the server as long as the call takes.
            body = await self.bodies.read(incoming)
            await self.turns.take()
            if self.connections.is_cut(peer):
                return
            if self.calls_in_progress >= _MAX_CALLS:
                raise Unavailable(f"{_MAX_CALLS} calls are in progress")
        except (HttpProblem, Unavailable) as error:
            if incoming.broken:
                self.connections.broke_off(peer)
            elif not incoming.complete:
                self.connections.left_unread(peer)
            answer = problem_response(Request(scope), problem_of(error))
            await answer(scope, receive, send)
            return
        self.calls_in_progress += 1
        try:
            await super().__call__(scope, again(body, receive), send)
        finally:
            self.calls_in_progress -= 1

    def openapi(self) -> dict[str, Any]:
        """The whole API, `POST /entries` included."""
        if self.openapi_schema is None:
            journal: Journal = self.state.journal
            access: Access = self.state.access
            self.openapi_schema = complete(
                super().openapi(), journal.settings.max_entries, tokens_enforced=access.enforced
            )
        return self.openapi_schema

    async def _describe(self, _: Request) -> Response:
        async with self._describing:
            if self._description is None:
                rendered = await asyncio.to_thread(lambda: JSONResponse(self.openapi()).body)
                self._description = bytes(rendered)
        return Response(self._description, media_type=JSONResponse.media_type)

    async def _show(self, _: Request) -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title=f"{self.title}: its API",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
        )


def create_app(settings: Settings | None = None) -> JournalApp:
    """Build the application.

    Settings come from the environment unless given. Raises `SettingsError`.
    """
    settings = settings or load_settings()
    access = Access(settings.tokens_file, allow_anonymous=settings.allow_anonymous)
    access.load()
    guard = Guard(access)
    journal = Journal(settings)
    app = JournalApp(
        title="journal",
        summary="A durable write-ahead journal, replicated exactly once into PostgreSQL",
        version="0.1.0",
        lifespan=_lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        exception_handlers={
            Exception: on_error,
            HTTPException: on_http_exception,
            RequestValidationError: on_invalid_parameter,
            **dict.fromkeys(TRANSLATED, on_error),
        },
    )
    app.state.journal = journal
    app.state.access = access
    app.state.guard = guard
    # Behind the middleware that is added later: what is refused is measured as well.
    app.add_middleware(Security, guard=guard, rejected=journal.metrics.rejected)
    app.state.blocks = journal.blocks
    app.state.streams = block_stream.Streams()
    app.state.flushes = Flushes()
    app.include_router(router)
    for each in (block_stream, blocks, proofs):
        app.include_router(each.router)
    instrumentator = Instrumentator(
        excluded_handlers=["/metrics"], registry=journal.metrics.registry
    )
    instrumentator.add(journal.metrics.http.observe).instrument(app)
    app.turns = Turns(_MAX_CALLS)
    app.bodies = Bodies(
        _MAX_BODY_BYTES, _MAX_BODIES_BYTES, settings.body_timeout_s, max_unfinished=_MAX_CALLS
    )
    app.connections = Connections(
        max_connections(settings.channel_capacity),
        settings.header_timeout_s,
        settings.idle_timeout_s,
        settings.flood_ban_s,
    )
    app.state.large_answers = LargeAnswers(app.turns, app.connections)
    app.entries = EntriesEndpoint(journal, guard, app.connections)
    # So that the router knows the path, and refuses its other methods.
    app.router.routes.append(Route(ENTRIES_PATH, app.entries, methods=["POST"]))
    return app


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return send_head


@asynccontextmanager
async def _lifespan(app: JournalApp) -> AsyncIterator[None]:
    journal: Journal = app.state.journal
    configure_logging(journal.settings.log_format, journal.settings.log_level)
    os.umask(_PRIVATE_UMASK)
    opening = asyncio.create_task(_open(journal), name="opening")
    _listen_to_supervisor(journal, app.state.access, opening)
    watching = start_lasting(app.connections.watch(), "connections", stop_at_once)
    yield
    watching.cancel()
    await opening
    await journal.close()
    _log.info("stopped")


async def _open(journal: Journal) -> None:
    try:
        await journal.open()
    except JournalError as error:
        _log.critical("%s", error)
        _stop()
    except OSError as error:  # what is below the data directory, or the directory itself
        _log.critical("the start failed in %s: %s", journal.settings.data_dir, error)
        _stop()
    except Exception:  # noqa: BLE001 - whatever it is, there is nothing to serve
        _log.critical("the start failed", exc_info=True)
        _stop()


def _stop() -> None:
    logging.shutdown()
    os._exit(EXIT_REFUSED)


def _leave() -> None:
    """End although clients keep connections open: everything that was promised them is done."""
    _log.info("stopped, with connections still open")
    os._exit(0)


def _listen_to_supervisor(journal: Journal, access: Access, opening: "asyncio.Task[None]") -> None:
    """Under the service's own supervisor: drain while listening, then let it stop the server."""
    supervisor, parent = os.environ.get(SUPERVISED_ENV), multiprocessing.parent_process()
    if supervisor is None or parent is None:
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def drain() -> None:
        await opening
        await journal.close()
        if parent.is_alive():
            with suppress(ProcessLookupError):
                os.kill(int(supervisor), DRAINED_SIGNAL)
        linger = Timer(_LINGER_S, _leave)
        linger.daemon = True
        linger.start()

    def begin() -> None:
        if not tasks:
            _log.info("draining: new entries are refused, what is queued becomes durable")
            journal.drain()
            tasks.add(asyncio.create_task(drain(), name="drain"))

    def orphaned() -> None:
        loop.remove_reader(parent.sentinel)
        _log.critical("the supervisor is gone, stopping")
        # Not the server's own stop: it waits for connections that may never end.
        begin()

    loop.add_reader(parent.sentinel, orphaned)
    loop.add_signal_handler(DRAIN_SIGNAL, begin)
    loop.add_signal_handler(RELOAD_SIGNAL, access.reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {DRAIN_SIGNAL, RELOAD_SIGNAL})
    # A terminal sends these to the whole group; what follows is for the supervisor to decide.
    for number in (signal.SIGINT, signal.SIGHUP):
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def __getattr__(name: str) -> Any:
    """Build `app` when a server asks for it, not when something else of this module is imported."""
    if name != "app":
        raise AttributeError(name)
    try:
        return create_app()
    except SettingsError as error:
        sys.exit(f"journal: {error}")
