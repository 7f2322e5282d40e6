"""A stretch of network between a client and Postgres that can fail."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

T = TypeVar("T")


class PostgresProxy:
    """Forwards from a Unix socket in `directory` to the server of `url`, until told otherwise."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        netloc = f"{credentials}{at}"
        self.url = urlunsplit(
            parts._replace(netloc=netloc, query=urlencode({"host": str(directory)}))
        )
        self._socket = directory / ".s.PGSQL.5432"
        self._host = parts.hostname or parse_qs(parts.query).get("host", ["localhost"])[0]
        self._port = parts.port or 5432
        self._cut: bytes | None = None
        self._silent = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: list[asyncio.StreamWriter] = []

    def drop_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and nothing that the server answers to it."""
        self._cut = message

    def fall_silent(self) -> None:
        """Swallow everything from now on, and close nothing."""
        self._silent = True

    def hold(self) -> None:
        """Keep everything back from now on, and lose nothing: a network that hangs."""
        self._flowing.clear()

    def release(self) -> None:
        """Forward what was held, and go on."""
        self._flowing.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._forward, self._socket)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        self._close()
        await self._server.wait_closed()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host.startswith("/"):
            path = f"{self._host}/.s.PGSQL.{self._port}"
            upstream, upwards = await asyncio.open_unix_connection(path)
        else:
            upstream, upwards = await asyncio.open_connection(self._host, self._port)
        self._writers += [writer, upwards]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pump(reader, upwards, cuts=True), name="to-postgres")
            tasks.create_task(self._pump(upstream, writer, cuts=False), name="to-client")

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, cuts: bool
    ) -> None:
        try:
            while data := await source.read(65536):
                if self._silent:
                    continue
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
                if cuts and self._cut is not None and self._cut in data:
                    self._cut = None
                    self._close()
        except ConnectionError:
            pass
        finally:
            sink.close()


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

    def drop_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and cut all connections behind it."""
        self._call(lambda: self._proxy.drop_after(message))

    def _call(self, action: Callable[[], None]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)


@contextmanager
def proxied(url: str, directory: Path) -> Iterator[ThreadedProxy]:
    """A proxy to the server of `url`, with its socket in `directory`."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="postgres-proxy", daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    async def opened() -> PostgresProxy:
        return await PostgresProxy(url, directory).__aenter__()

    proxy = run(opened())
    try:
        yield ThreadedProxy(proxy, loop)
    finally:
        proxy.release()
        run(proxy.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
