"""What the worker asks Postgres: small questions with short limits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import asyncpg

from app.replication.block_reader import BlockReader, BlockReference, HeldCommand
from app.replication.connection import READER_LIMITS, Limits, connect_options, translated
from app.replication.rows import READ_PROGRESS, Progress

# Counting goes no further: the number is for a message to an operator.
COUNT_LIMIT: Final = 100_000
_MAX_CONNECTIONS: Final = 4

_COMMAND: Final = """
SELECT command_id, false AS dead_letter FROM engine_commands
WHERE environment = $1 AND request_uuid = $2
UNION ALL
SELECT command_id, true FROM dead_letters
WHERE environment = $1 AND request_uuid = $2
ORDER BY dead_letter, command_id
LIMIT 1
"""
_MIGRATED: Final = "SELECT to_regclass('public.replication_progress') IS NOT NULL"
_SUMMARY: Final = """
SELECT
    (SELECT count(*) FROM
        (SELECT FROM engine_commands WHERE environment = $1 LIMIT $2) AS counted) AS commands,
    (SELECT count(*) FROM
        (SELECT FROM dead_letters WHERE environment = $1 LIMIT $2) AS counted) AS dead_letters,
    greatest(
        (SELECT max(command_id) FROM engine_commands WHERE environment = $1),
        (SELECT max(command_id) FROM dead_letters WHERE environment = $1)) AS newest_command_id
"""


class ReplicatedCommand(NamedTuple):
    """Where a `request_uuid` has ended up."""

    command_id: int
    dead_letter: bool


class EnvironmentSummary(NamedTuple):
    """What Postgres holds of an environment. The two numbers are counted up to `COUNT_LIMIT`."""

    commands: int = 0
    dead_letters: int = 0
    newest_command_id: int | None = None
    progress: Progress | None = None

    @property
    def used(self) -> bool:
        """Whether the environment was ever journaled into this database."""
        return self.newest_command_id is not None or self.progress is not None


class Reader:
    """The worker's reading side. Connects when asked something, and anew after a failure.

    Every method raises `DatabaseUnavailable` when Postgres gives no answer in time.
    """

    def __init__(self, dsn: str, environment: str, *, limits: Limits = READER_LIMITS) -> None:
        self._dsn = dsn
        self._environment = environment
        self._limits = limits
        self._opening = asyncio.Lock()
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def command(self, request_uuid: UUID) -> ReplicatedCommand | None:
        """The command that came in under `request_uuid`; None where Postgres has none."""
        row = await self._fetchrow("looking up an entry", _COMMAND, request_uuid)
        return None if row is None else ReplicatedCommand(row["command_id"], row["dead_letter"])

    async def progress(self) -> Progress | None:
        """The progress row; None before the first record, or before the first migration."""
        if not await self._is_migrated():
            return None
        row = await self._fetchrow("reading the progress row", READ_PROGRESS)
        return None if row is None else Progress(**dict(row))

    async def environment_summary(self) -> EnvironmentSummary:
        """What the database holds of the environment; nothing, before the first migration."""
        if not await self._is_migrated():
            return EnvironmentSummary()
        row = await self._fetchrow("looking at the environment", _SUMMARY, COUNT_LIMIT)
        held = {} if row is None else dict(row)
        return EnvironmentSummary(**held, progress=await self.progress())

    async def newest_block(self) -> BlockReference | None:
        """The highest block; None where there is none, or before the migration for blocks."""
        async with self._connection("looking for the newest block") as connection:
            return await BlockReader(connection, self._environment).newest_block()

    async def block_commands(self, height: int) -> list[HeldCommand]:
        """The commands of a block with their content; none where there is no such block."""
        async with self._connection("reading a block's commands") as connection:
            blocks = BlockReader(connection, self._environment)
            return await blocks.commands(height, content=True)

    async def close(self) -> None:
        """Give back the connections."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _is_migrated(self) -> bool:
        async with self._connection("looking for the schema") as connection:
            return bool(await connection.fetchval(_MIGRATED))

    async def _fetchrow(self, doing: str, query: str, *values: object) -> asyncpg.Record | None:
        async with self._connection(doing) as connection:
            row: asyncpg.Record | None = await connection.fetchrow(
                query, self._environment, *values
            )
            return row

    @asynccontextmanager
    async def _connection(self, doing: str) -> AsyncIterator[Any]:
        with translated(doing):
            pool = await self._open_pool()
            async with pool.acquire(timeout=self._limits.connect_s) as connection:
                yield connection

    async def _open_pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                options = connect_options(self._dsn, "journal-reader", self._limits)
                # No connection is made here: min_size is 0.
                self._pool = await asyncpg.create_pool(
                    **options, min_size=0, max_size=_MAX_CONNECTIONS, init=_keep_alive
                )
            return self._pool


async def _keep_alive(connection: Any) -> None:
    """Have a connection that waits in the pool found dead before somebody asks over it."""
    connection.keep_alive()
