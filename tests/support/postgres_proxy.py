"""A stretch of network between a client and Postgres that can fail."""

import asyncio
import ctypes
import fcntl
import socket
import struct
from array import array
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

from tests.support.waiting import wait_for

T = TypeVar("T")

# linux/sockios.h: bytes that were sent and are not acknowledged, or wait to be sent.
_SIOCOUTQ: Final = 0x5411
# asm-generic/socket.h, linux/filter.h: a program of one instruction, which keeps no byte.
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_KEEP_NOTHING: Final = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
_FILTER: Final = struct.pack("@HP", 1, ctypes.addressof(_KEEP_NOTHING))


class _At(Enum):
    """What happens at a message."""

    CUT_BEFORE = auto()
    CUT_BEHIND = auto()
    HOLD_BEHIND = auto()


class PostgresProxy:
    """Forwards from a Unix socket in `directory` to the server of `url`, until told otherwise.

    With `tcp`, from a port of the loopback interface instead.
    """

    def __init__(self, url: str, directory: Path, *, tcp: bool = False) -> None:
        self._parts = urlsplit(url)
        self.url = self._url("", urlencode({"host": str(directory)}))
        self._tcp = tcp
        self._socket = directory / ".s.PGSQL.5432"
        asked = parse_qs(self._parts.query).get("host", ["localhost"])[0]
        self._host = self._parts.hostname or asked
        self._port = self._parts.port or 5432
        self._awaited: tuple[bytes, _At] | None = None
        self.reached = asyncio.Event()
        self._silent = False
        self._piece_bytes, self._pause_s = 65536, 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []
        self._connections: set[asyncio.Task[None]] = set()

    def drop_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and nothing that the server answers to it."""
        self._await(message, _At.CUT_BEHIND)

    def drop_before(self, message: bytes) -> None:
        """Lose the connection instead of forwarding the client's next `message`."""
        self._await(message, _At.CUT_BEFORE)

    def hold_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and keep everything back from then on."""
        self._await(message, _At.HOLD_BEHIND)

    def fall_silent(self) -> None:
        """Swallow everything from now on, and close nothing."""
        self._silent = True

    def lose_packets(self) -> None:
        """Let the kernel drop every packet of a client from now on, SYNs and keepalives too.

        A black hole: nothing is acknowledged, refused, closed or reset. Only with `tcp`. What is
        not `is_quiet` is sent again and again, and shows the client that there is somebody.
        """
        for end in (*self._server.sockets, *self._ends()):
            end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _FILTER)

    def is_quiet(self) -> bool:
        """Whether clients have acknowledged all that was sent to them."""
        unacknowledged = array("i", [0])
        for end in self._ends():
            fcntl.ioctl(end.fileno(), _SIOCOUTQ, unacknowledged)
            if unacknowledged[0]:
                return False
        return True

    def find_packets(self) -> None:
        """Let packets through again; connections from before are reset, as by the server."""
        for end in (*self._server.sockets, *self._ends()):
            end.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        for writer in self._writers:
            writer.transport.abort()

    def hold(self) -> None:
        """Keep everything back from now on, and lose nothing: a network that hangs."""
        self._flowing.clear()

    def release(self) -> None:
        """Forward what was held, and go on at full speed."""
        self._piece_bytes, self._pause_s = 65536, 0.0
        self._flowing.set()

    def slow_down(self, piece_bytes: int, pause_s: float) -> None:
        """Forward pieces of so many bytes, each after a pause: a delay, or a trickle."""
        self._piece_bytes, self._pause_s = piece_bytes, pause_s

    def cut(self) -> None:
        """Lose every connection."""
        for writer in self._writers:
            writer.close()

    async def __aenter__(self) -> Self:
        if self._tcp:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            port = self._server.sockets[0].getsockname()[1]
            self.url = self._url(f"127.0.0.1:{port}", "sslmode=disable")
        else:
            self._server = await asyncio.start_unix_server(self._accept, self._socket)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        self.release()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._connections)
        closing = (writer.wait_closed() for writer in self._writers)
        await asyncio.gather(*closing, return_exceptions=True)
        await self._server.wait_closed()

    def _await(self, message: bytes, fault: _At) -> None:
        self._awaited = (message, fault)
        self.reached.clear()

    def _url(self, address: str, query: str) -> str:
        credentials, at, _ = self._parts.netloc.rpartition("@")
        netloc = f"{credentials}{at}{address}"
        return urlunsplit(self._parts._replace(netloc=netloc, query=query))

    def _ends(self) -> Iterator[Any]:
        """The ends of clients' connections, to this side."""
        assert self._tcp
        for writer in self._writers:
            end = writer.get_extra_info("socket")
            if (
                not writer.is_closing()
                and end.getsockname() == self._server.sockets[0].getsockname()
            ):
                yield end

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer), name="postgres-connection")
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            if self._host.startswith("/"):
                path = f"{self._host}/.s.PGSQL.{self._port}"
                upstream, upwards = await asyncio.open_unix_connection(path)
            else:
                upstream, upwards = await asyncio.open_connection(self._host, self._port)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        self._writers.append(upwards)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(reader, upwards, asks=True), name="to-postgres")
            tasks.create_task(self._pump(upstream, writer, asks=False), name="to-client")

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        try:
            while data := await source.read(self._piece_bytes):
                if self._silent:
                    continue
                await self._flowing.wait()
                if self._pause_s:
                    await asyncio.sleep(self._pause_s)
                fault = self._fault_at(data) if asks else None
                if fault is not _At.CUT_BEFORE:
                    sink.write(data)
                    await sink.drain()
                if fault is _At.HOLD_BEHIND:
                    self.hold()
                elif fault is not None:
                    self.cut()
        except ConnectionError:
            pass
        finally:
            sink.close()

    def _fault_at(self, data: bytes) -> _At | None:
        if self._awaited is None or self._awaited[0] not in data:
            return None
        fault, self._awaited = self._awaited[1], None
        self.reached.set()
        return fault


class ThreadedProxy:
    """A proxy on a loop in a thread of its own, for tests without one. `url` leads through it."""

    def __init__(self, proxy: PostgresProxy, loop: asyncio.AbstractEventLoop) -> None:
        self.url = proxy.url
        self._proxy = proxy
        self._loop = loop

    def hold(self) -> None:
        """Let the network hang."""
        self._call(self._proxy.hold)

    def release(self) -> None:
        """Let it go on."""
        self._call(self._proxy.release)

    def lose_packets(self) -> None:
        """Let the kernel drop every packet of a client, once nothing is under way to one."""
        wait_for(self._proxy.is_quiet, "clients have acknowledged all that was sent")
        self._call(self._proxy.lose_packets)

    def find_packets(self) -> None:
        """Let packets through again, over new connections."""
        self._call(self._proxy.find_packets)

    def drop_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and cut all connections behind it."""
        self._call(lambda: self._proxy.drop_after(message))

    def drop_before(self, message: bytes) -> None:
        """Cut all connections in place of forwarding the client's next `message`."""
        self._call(lambda: self._proxy.drop_before(message))

    def slow_down(self, piece_bytes: int, pause_s: float) -> None:
        """Forward in pieces of so many bytes, each after a pause."""
        self._call(lambda: self._proxy.slow_down(piece_bytes, pause_s))

    def cut(self) -> None:
        """Cut all connections."""
        self._call(self._proxy.cut)

    def _call(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)


@contextmanager
def proxied(url: str, directory: Path, *, tcp: bool = False) -> Iterator[ThreadedProxy]:
    """A proxy to the server of `url`, with its socket in `directory` or, with `tcp`, on a port."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="postgres-proxy", daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def opened() -> PostgresProxy:
        return await PostgresProxy(url, directory, tcp=tcp).__aenter__()

    proxy = run(opened())
    try:
        yield ThreadedProxy(proxy, loop)
    finally:
        run(proxy.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
