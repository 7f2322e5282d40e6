"""Questions to a test's database, and an outage of it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

from tests.support.postgres_cluster import Cluster, database_name


def query(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of `statement`. Not from within a running loop."""

    async def run() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    return asyncio.run(run())


def value(url: str, statement: str, *values: object) -> Any:
    """The one value that `statement` gives."""
    [[found]] = query(url, statement, *values)
    return found


def end_connections(cluster: Cluster, url: str) -> None:
    """End every connection to the database, as a restart of Postgres does."""
    query(
        cluster.url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
        database_name(url),
    )


@contextmanager
def outage(cluster: Cluster, url: str) -> Iterator[None]:
    """While it lasts, Postgres ends and refuses all connections to the database."""
    allow = f'ALTER DATABASE "{database_name(url)}" ALLOW_CONNECTIONS '
    query(cluster.url, allow + "false")
    try:
        end_connections(cluster, url)
        yield
    finally:
        query(cluster.url, allow + "true")
