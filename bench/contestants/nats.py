"""NATS JetStream: a file stream that is synced before each message is acknowledged.

`sync_interval: always` is newer than Debian's package: bench/setup.sh builds the server's module.
JetStream could tell duplicates within a window; it is not asked to.
"""

import importlib.util
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench.contestant import SERVERS, Row, Server, free_port, loaded, wait_for
from bench.entries import encoded_entries
from bench.load import Job, Prepared

_BINARY: Final = SERVERS / "bin" / "nats-server"
_STREAM: Final = "journal"
_CONFIGURATION: Final = """
host: 127.0.0.1
port: {port}
jetstream {{ store_dir: "{directory}", sync_interval: always }}
"""


class NatsDriver:
    """Publishes one message a send, all over one connection."""

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """The connection, the stream, and the messages."""
        import nats  # noqa: PLC0415 - of the benchmark's environment alone

        connection = await nats.connect(job.target)
        try:
            stream = connection.jetstream()
            await stream.add_stream(name=_STREAM, subjects=[_STREAM])

            async def send(message: bytes) -> None:
                await stream.publish(_STREAM, message)

            messages = [data for _, data in encoded_entries(job.sends)]
            yield Prepared(iter(messages), [send] * job.in_flight)
        finally:
            await connection.close()


class Nats:
    """One server."""

    name = "nats"

    def __init__(self) -> None:
        self._server = Server("nats")
        self._port = 0

    def missing(self) -> str | None:
        """Its own module, and the client."""
        if not _BINARY.exists():
            return "there is no nats-server of its module"
        return None if importlib.util.find_spec("nats") else "nats-py is not installed"

    def rows(self) -> Sequence[Row]:
        """As the journal gets single entries."""
        return [Row("nats", "NATS JetStream, sync always, 64 in flight", loaded(self._job))]

    def launch(self, scratch: Path) -> None:
        """Start the server."""
        self._port = free_port()
        file = scratch / "nats.conf"
        file.write_text(_CONFIGURATION.format(port=self._port, directory=scratch / self.name))
        self._server.start([_BINARY, "--config", file], scratch)

    def ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: self._server.answers_on(self._port), "NATS listens")

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def _job(self) -> Job:
        url = f"nats://127.0.0.1:{self._port}"
        return Job(driver="nats", target=url, in_flight=64, sends=20_000)


DRIVER = NatsDriver()
