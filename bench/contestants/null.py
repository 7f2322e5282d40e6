"""The null server: the journal's HTTP server in front of an application that only reads the body.

`python -m bench.contestants.null PORT` serves it.
"""

import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from app.server import make_server
from app.settings import Settings
from bench.contestant import Row, Server, free_port, loaded, wait_for
from bench.load import Job

Message = MutableMapping[str, Any]


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Read the body, answer 200 with as much as the journal answers to one entry."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", b"130")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b" " * 130})


class Null:
    """What HTTP alone costs here, the load generator included."""

    name = "null"

    def __init__(self) -> None:
        self._server = Server("null")
        self._port = 0

    def missing(self) -> str | None:
        """Nothing can be missing."""
        return None

    def rows(self) -> Sequence[Row]:
        """As the journal is loaded."""
        return [
            Row(
                "null-1",
                "null server, HTTP/2, 1 entry, 64 in flight",
                loaded(lambda: self._job(1, 64, 20_000)),
            ),
            Row(
                "null-1-lone",
                "null server, HTTP/2, 1 entry, 1 in flight",
                loaded(lambda: self._job(1, 1, 20_000)),
            ),
            Row(
                "null-100",
                "null server, HTTP/2, 100 entries, 16 in flight",
                loaded(lambda: self._job(100, 16, 6000)),
            ),
        ]

    def launch(self, scratch: Path) -> None:
        """Start the server."""
        self._port = free_port()
        self._server.start([sys.executable, "-m", __name__, str(self._port)], scratch)

    def ready(self) -> None:
        """Wait until it listens."""
        wait_for(lambda: self._server.answers_on(self._port), "the null server listens")

    def close(self) -> None:
        """Stop the server."""
        self._server.stop()

    def _job(self, entries: int, in_flight: int, sends: int) -> Job:
        url = f"http://127.0.0.1:{self._port}/entries"
        return Job(driver="http", target=url, entries=entries, in_flight=in_flight, sends=sends)


if __name__ == "__main__":
    make_server(Settings(port=int(sys.argv[1])), "bench.contestants.null:application").serve()
