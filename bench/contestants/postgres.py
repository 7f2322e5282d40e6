"""PostgreSQL, as a user would journal into it: direct inserts through asyncpg.

The server is the service's embedded one with its default settings (`fsync` and `synchronous_commit`
on). The table has the entry's fields as columns, what is nested as MessagePack, and a unique
`request_uuid`. 100 rows are one `executemany`, which is a transaction of its own.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import msgspec

from app.embedded import EmbeddedPostgres
from bench.contestant import Row, loaded
from bench.entries import entry
from bench.load import Job, Prepared, Send

_CREATE: Final = """
CREATE TABLE entries (
    command_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_uuid uuid NOT NULL UNIQUE,
    received_ts_ms bigint NOT NULL,
    command_type text,
    command_data bytea NOT NULL,
    response_data bytea,
    order_id bigint,
    duration_ms bigint NOT NULL,
    digests bytea NOT NULL,
    events bytea NOT NULL)
"""
_COLUMNS: Final = (
    "request_uuid",
    "received_ts_ms",
    "command_type",
    "command_data",
    "response_data",
    "order_id",
    "duration_ms",
    "digests",
    "events",
)
_INSERT: Final = "INSERT INTO entries ({names}) {rows}".format(
    names=", ".join(_COLUMNS),
    rows="VALUES (" + ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1)) + ")",
)


class Cluster:
    """One PostgreSQL for all contestants that want one: it runs while somebody uses it."""

    def __init__(self) -> None:
        self._server: EmbeddedPostgres | None = None
        self._users = 0
        self._url = ""

    def start(self, scratch: Path) -> None:
        """Run, for one user more."""
        if self._server is None:
            self._server = EmbeddedPostgres(scratch / "cluster" / "postgres")
            self._url = self._server.start()
        self._users += 1

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        asyncio.run(_execute(self._url, f'CREATE DATABASE "{name}"'))
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))

    def stop(self) -> None:
        """One user less."""
        self._users -= 1
        if self._users <= 0 and self._server is not None:
            self._server.stop()
            self._server = None


class PostgresDriver:
    """Inserts into the table of the database at `job.target`, one connection for each in flight."""

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """The connections, and the rows."""
        connections = [await asyncpg.connect(job.target) for _ in range(job.in_flight)]
        single = job.entries == 1
        try:
            payloads = (
                _rows(job.sends) if single else [_rows(job.entries) for _ in range(job.sends)]
            )
            make = _single if single else _many
            yield Prepared(iter(payloads), [make(each) for each in connections])
        finally:
            for connection in connections:
                await connection.close()


def _single(connection: Any) -> Send:
    async def send(row: tuple[Any, ...]) -> None:
        await connection.execute(_INSERT, *row)

    return send


def _many(connection: Any) -> Send:
    async def send(rows: list[tuple[Any, ...]]) -> None:
        await connection.executemany(_INSERT, rows)

    return send


def _rows(count: int) -> list[tuple[Any, ...]]:
    """Rows with fresh uuids; what else is in them is one entry's."""
    of = entry(uuid4())
    digests = msgspec.msgpack.encode([of["pre_digest"], of["post_digest"]])
    rest = [of[name] for name in _COLUMNS[1:-2]]
    row = (*rest, digests, msgspec.msgpack.encode(of["events"]))
    return [(UUID(bytes=os.urandom(16)), *row) for _ in range(count)]


class Postgres:
    """One row and 100 rows a transaction."""

    name = "postgres"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._started = False

    def missing(self) -> str | None:
        """It comes with the development environment."""
        return None

    def rows(self) -> Sequence[Row]:
        """With as many connections as the journal has requests in flight."""
        return [
            Row(
                "postgres-1",
                "PostgreSQL, 1 row a transaction, 64 in flight",
                loaded(lambda: self._job(1, 64, 25_000)),
            ),
            Row(
                "postgres-100",
                "PostgreSQL, 100 rows a transaction, 16 in flight",
                loaded(lambda: self._job(100, 16, 2500)),
            ),
        ]

    def launch(self, scratch: Path) -> None:
        """Start the server."""
        self._cluster.start(scratch)
        self._started = True

    def ready(self) -> None:
        """Make the table."""
        self._url = self._cluster.database("direct")
        asyncio.run(_execute(self._url, _CREATE))

    def close(self) -> None:
        """Stop the server, unless others need it."""
        if self._started:
            self._cluster.stop()

    def _job(self, entries: int, in_flight: int, sends: int) -> Job:
        return Job(
            driver="postgres",
            target=self._url,
            entries=entries,
            in_flight=in_flight,
            sends=sends,
        )


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


DRIVER = PostgresDriver()
