"""A stretch of network between a client and Postgres that can fail."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit


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
        self._writers: list[asyncio.StreamWriter] = []

    def drop_after(self, message: bytes) -> None:
        """Forward the client's next `message`, and nothing that the server answers to it."""
        self._cut = message

    def fall_silent(self) -> None:
        """Swallow everything from now on, and close nothing."""
        self._silent = True

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
                sink.write(data)
                await sink.drain()
                if cuts and self._cut is not None and self._cut in data:
                    self._close()
        except ConnectionError:
            pass
        finally:
            sink.close()
