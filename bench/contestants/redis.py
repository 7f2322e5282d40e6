"""Redis streams: `XADD` with `appendfsync always`, which syncs before it answers.

Commands are encoded beforehand and answers only counted: no client library is in the way. Redis
tells no duplicates.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.contestant import Row, Server, free_port, loaded, wait_for
from bench.entries import encoded_entries
from bench.load import Job, Prepared

# `XADD journal * entry BYTES`
_COMMAND: Final = b"*5\r\n$4\r\nXADD\r\n$7\r\njournal\r\n$1\r\n*\r\n$5\r\nentry\r\n$%d\r\n%b\r\n"
_LINES_PER_ANSWER: Final = 2
_PIPELINE: Final = 16


class _Connection(asyncio.Protocol):
    """Sends commands and waits for as many answers."""

    def __init__(self, commands: int) -> None:
        self._lines = commands * _LINES_PER_ANSWER
        self._left = 0
        self._answered: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of the protocol."""
        if isinstance(transport, asyncio.Transport):
            self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Part of the protocol."""
        self._left -= data.count(b"\r\n")
        if self._answered is None or self._answered.done():
            return
        if b"-" in data[:1]:
            self._answered.set_exception(RuntimeError(f"Redis answered {data[:200]!r}"))
        elif self._left <= 0:
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of the protocol."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("Redis closed the connection"))

    async def send(self, commands: bytes) -> None:
        self._answered = asyncio.get_running_loop().create_future()
        self._left = self._lines
        self.transport.write(commands)
        await self._answered


class RedisDriver:
    """Pipelines of `job.entries` commands to the port `job.target`, one connection for each."""

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """The connections, and the pipelines."""
        loop = asyncio.get_running_loop()
        connections = []
        try:
            for _ in range(job.in_flight):
                _, connection = await loop.create_connection(
                    lambda: _Connection(job.entries), "127.0.0.1", int(job.target)
                )
                connections.append(connection)
            payloads = [_pipeline(job.entries) for _ in range(job.sends)]
            yield Prepared(iter(payloads), [connection.send for connection in connections])
        finally:
            for connection in connections:
                connection.transport.close()


def _pipeline(commands: int) -> bytes:
    return b"".join(_COMMAND % (len(data), data) for _, data in encoded_entries(commands))


class Redis:
    """Plain, and in 16-deep pipelines."""

    name = "redis"

    def __init__(self) -> None:
        self._server = Server("redis")
        self._port = 0

    def missing(self) -> str | None:
        """Debian's package."""
        return None if shutil.which("redis-server") else "there is no redis-server"

    def rows(self) -> Sequence[Row]:
        """With as much in flight as the journal has."""
        return [
            Row("redis", "Redis, XADD, 64 in flight", loaded(lambda: self._job(1, 64, 200_000))),
            Row(
                "redis-pipelined",
                "Redis, pipelines of 16 XADD, 1 connection",
                loaded(lambda: self._job(_PIPELINE, 1, 12_000)),
            ),
            Row(
                "redis-pipelined-16",
                "Redis, pipelines of 16 XADD, 16 connections",
                loaded(lambda: self._job(_PIPELINE, 16, 20_000)),
            ),
        ]

    def launch(self, scratch: Path) -> None:
        """Start the server."""
        self._port = free_port()
        directory = scratch / self.name
        directory.mkdir()
        options = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._server.start(["redis-server", *arguments], scratch)

    def ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: self._server.answers_on(self._port), "Redis listens")

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def _job(self, entries: int, in_flight: int, sends: int) -> Job:
        return Job(
            driver="redis",
            target=str(self._port),
            entries=entries,
            in_flight=in_flight,
            sends=sends,
        )


DRIVER = RedisDriver()
