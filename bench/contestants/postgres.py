"""PostgreSQL, as a user would journal into it: direct inserts through asyncpg.

The server is the service's embedded one with its default settings (`fsync` and `synchronous_commit`
on). Its task is the easiest that still tells duplicates: one table of the entry as bytes, its
`request_uuid` unique. 100 rows are one statement, a transaction of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from app.embedded import EmbeddedPostgres
from bench.contestant import Row, loaded
from bench.entries import encoded_entries
from bench.load import Job, Prepared, Send

_CREATE: Final = """
CREATE TABLE entries (
    command_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_uuid uuid NOT NULL UNIQUE,
    entry bytea NOT NULL)
"""
_INSERT: Final = """
INSERT INTO entries (request_uuid, entry) SELECT * FROM unnest($1::uuid[], $2::bytea[])
"""
_INSERT_ONE: Final = "INSERT INTO entries (request_uuid, entry) VALUES ($1, $2)"


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
        """The connections, and the arguments of the inserts."""
        connections = [await asyncpg.connect(job.target) for _ in range(job.in_flight)]
        try:
            statement = _INSERT_ONE if job.entries == 1 else _INSERT
            senders = [await _sender(connection, statement) for connection in connections]
            yield Prepared(_arguments(job), senders)
        finally:
            for connection in connections:
                await connection.close()


async def _sender(connection: Any, statement: str) -> Send:
    prepared = await connection.prepare(statement)

    async def send(arguments: tuple[Any, Any]) -> None:
        await prepared.fetch(*arguments)

    return send


def _arguments(job: Job) -> Iterator[tuple[Any, Any]]:
    made = list(encoded_entries(job.sends * job.entries))
    if job.entries == 1:
        return iter(made)
    batches = (made[at : at + job.entries] for at in range(0, len(made), job.entries))
    return iter([tuple(map(list, zip(*batch, strict=True))) for batch in batches])  # type: ignore[misc]


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
                loaded(lambda: self._job(1, 64, 12_000)),
            ),
            Row(
                "postgres-100",
                "PostgreSQL, 100 rows a transaction, 16 in flight",
                loaded(lambda: self._job(100, 16, 1200)),
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
