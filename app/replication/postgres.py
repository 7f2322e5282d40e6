"""The sink: WAL records into Postgres, in the transaction of the progress row that covers them.

Protocol, section 6. Commands are copied into a temporary table first, since only an INSERT can
leave out those whose `request_uuid` is there already; what is below the others can't conflict and
is copied straight into its table. A record that holds content which Postgres refuses is halved
under savepoints until the entries at fault are alone; they become dead letters, the others go in as
ever. The blocks of the records follow, whatever became of their entries.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self

from msgspec.structs import replace

from app import failpoints
from app.errors import DatabaseUnavailable, ReplicationRefused, RevisionMismatch
from app.model.entry import Entry
from app.replication.block_rows import blocks_of
from app.replication.block_sink import insert_blocks
from app.replication.connection import (
    CONTENT_ERRORS,
    SINK_LIMITS,
    Connection,
    Limits,
    advisory_key,
    describe,
    is_content_error,
    open_connection,
    sqlstate_of,
    translated,
)
from app.replication.migrations import current_revision, head_revision
from app.replication.rows import (
    COMMAND_COLUMNS,
    READ_PROGRESS,
    Numbered,
    Progress,
    advance,
    child_rows,
    command_rows,
    newest_balances,
    numbered,
    whole_entry,
)
from app.wal.record import Batch

MAX_ERROR_CHARACTERS: Final = 2000

CREATE_STAGING: Final = """
CREATE TEMPORARY TABLE staged_commands (LIKE public.engine_commands) ON COMMIT DELETE ROWS
"""
_INSERT_STAGED: Final = """
INSERT INTO engine_commands (
    environment, command_id, request_uuid, received_ts_ms, command_type, command_data,
    response_data, order_id, duration_ms, command_identity_hash, rsm_state_digest)
SELECT
    environment, command_id, request_uuid, received_ts_ms, command_type, command_data,
    response_data, order_id, duration_ms, command_identity_hash, rsm_state_digest
FROM staged_commands
ORDER BY command_id
ON CONFLICT (environment, request_uuid) DO NOTHING
RETURNING command_id
"""
_UPSERT_BALANCES: Final = """
INSERT INTO account_balances AS held (environment, wallet, balance_after, command_id, timestamp_ms)
SELECT $1, wallet, balance_after, command_id, timestamp_ms
FROM unnest($2::bytea[], $3::numeric[], $4::bigint[], $5::bigint[])
    AS newer (wallet, balance_after, command_id, timestamp_ms)
ON CONFLICT (environment, wallet) DO UPDATE SET
    balance_after = excluded.balance_after,
    command_id = excluded.command_id,
    timestamp_ms = excluded.timestamp_ms
WHERE held.command_id < excluded.command_id
"""
_INSERT_DEAD_LETTER: Final = """
INSERT INTO dead_letters (environment, command_id, request_uuid, entry, sqlstate, error)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_MOVE_PROGRESS: Final = """
UPDATE replication_progress SET
    wal_offset = $4, last_command_id = $5, last_l2_seq = $6, dead_letters = $7, updated_at = now()
WHERE environment = $1 AND wal_id = $2 AND wal_offset = $3
"""
_BEGIN_PROGRESS: Final = """
INSERT INTO replication_progress
    (environment, wal_id, wal_offset, last_command_id, last_l2_seq, dead_letters)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (environment) DO NOTHING
"""
_COUNT_DEAD_LETTERS: Final = """
UPDATE replication_progress SET dead_letters = $2 WHERE environment = $1
"""
_ADOPT: Final = """
INSERT INTO replication_progress AS held
    (environment, wal_id, wal_offset, last_command_id, last_l2_seq, dead_letters)
VALUES (
    $1, $2, 0,
    greatest(
        (SELECT max(command_id) FROM engine_commands WHERE environment = $1),
        (SELECT max(command_id) FROM dead_letters WHERE environment = $1),
        -- A repeated entry is in neither, and may be in a block.
        (SELECT last_command_id FROM rsm_blocks WHERE environment = $1
            ORDER BY batch_seq DESC LIMIT 1),
        0),
    (SELECT max(l2_sequence) FROM engine_events WHERE environment = $1),
    (SELECT count(*) FROM dead_letters WHERE environment = $1))
ON CONFLICT (environment) DO UPDATE SET
    wal_id = excluded.wal_id,
    wal_offset = CASE WHEN held.wal_id = excluded.wal_id THEN held.wal_offset ELSE 0 END,
    last_command_id = greatest(held.last_command_id, excluded.last_command_id),
    last_l2_seq = greatest(held.last_l2_seq, excluded.last_l2_seq),
    updated_at = now()
RETURNING wal_id, wal_offset, last_command_id, last_l2_seq, dead_letters
"""

_log = logging.getLogger(__name__)


class Sink:
    """The one writer of an environment's rows, on one connection.

    After an error it is spent: connect anew.
    """

    def __init__(self, connection: Connection, environment: str, persist_digests: bool) -> None:
        self._connection = connection
        self._environment = environment
        self._persist_digests = persist_digests

    @classmethod
    async def connect(
        cls,
        dsn: str,
        environment: str,
        *,
        persist_digests: bool = True,
        limits: Limits = SINK_LIMITS,
    ) -> Self:
        """Connect, take the environment's advisory lock and make sure of the schema's revision.

        Raises `DatabaseUnavailable`, also when another process holds the lock, and
        `RevisionMismatch` when migrations are due.
        """
        connection = await open_connection(dsn, "journal-replication", limits)
        try:
            with translated("preparing replication"):
                await _take_lock(connection, environment)
                await _check_revision(connection)
                await connection.execute(CREATE_STAGING)
        except BaseException:
            connection.terminate()
            raise
        return cls(connection, environment, persist_digests)

    @property
    def closed(self) -> bool:
        """Whether the connection is known to be gone."""
        return self._connection.is_closed()

    async def close(self) -> None:
        """Give back the connection, and with it the lock."""
        try:
            await self._connection.close(timeout=5)
        except (OSError, TimeoutError):
            self._connection.terminate()

    async def read_progress(self) -> Progress | None:
        """How far this environment has been replicated; None before its first record."""
        with translated("reading the progress row"):
            row = await self._connection.fetchrow(READ_PROGRESS, self._environment)
        return None if row is None else Progress(**dict(row))

    async def apply(
        self, batches: Sequence[Batch], end_offset: int, progress: Progress
    ) -> Progress:
        """Commit `batches`, the whole log from `progress` up to `end_offset`, and the new progress.

        All of it or nothing is committed; after `DatabaseUnavailable` only the progress row tells
        which. Raises `ReplicationRefused` when Postgres is not exactly where `progress` says, or
        holds other blocks.
        """
        entries = numbered(batches)
        blocks = blocks_of(batches)
        after = advance(progress, entries, end_offset)
        with translated("replicating"):
            try:
                async with self._transaction():
                    await self._move_progress(progress, after)
                    left_out = await self._insert(entries)
                    await insert_blocks(self._connection, self._environment, blocks, left_out)
            except CONTENT_ERRORS as error:
                if not is_content_error(error):
                    raise
                _log.warning("content was refused, looking for the entries: %s", describe(error))
            else:
                return after
            async with self._transaction():
                await self._move_progress(progress, after)
                left_out = set()
                dead = await self._insert_what_can_be(entries, left_out)
                await insert_blocks(self._connection, self._environment, blocks, left_out)
                after = replace(after, dead_letters=after.dead_letters + dead)
                await self._connection.execute(
                    _COUNT_DEAD_LETTERS, self._environment, after.dead_letters
                )
        return after

    async def adopt(self, wal_id: str) -> Progress:
        """Let the new WAL `wal_id` go on behind what Postgres holds of the environment.

        The progress row then stands at the beginning of that WAL, its `last_command_id` the newest
        known. A WAL that was adopted before keeps its place.
        """
        with translated("adopting a WAL"):
            row = await self._connection.fetchrow(_ADOPT, self._environment, wal_id)
        if row is None:
            raise ReplicationRefused("the progress row was not written")
        return Progress(**dict(row))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        """Unlike the driver's, it waits for no server that may be gone after an error."""
        await self._connection.execute("BEGIN")
        try:
            yield
            failpoints.reach(failpoints.BEFORE_COMMIT)
            await self._connection.execute("COMMIT")
            failpoints.reach(failpoints.AFTER_COMMIT)
        except BaseException as error:
            if isinstance(error, Exception) and is_content_error(error):
                await self._connection.execute("ROLLBACK")
            else:
                self._connection.terminate()
            raise

    async def _move_progress(self, before: Progress, after: Progress) -> None:
        """First in its transaction: the row's lock holds off any other writer from here on."""
        values = (after.wal_offset, after.last_command_id, after.last_l2_seq, after.dead_letters)
        status = await self._connection.execute(
            _MOVE_PROGRESS, self._environment, before.wal_id, before.wal_offset, *values
        )
        if status == "UPDATE 0" and before.wal_offset == 0:
            status = await self._connection.execute(
                _BEGIN_PROGRESS, self._environment, before.wal_id, *values
            )
        if status not in {"UPDATE 1", "INSERT 0 1"}:
            row = await self._connection.fetchrow(READ_PROGRESS, self._environment)
            raise ReplicationRefused(
                f"the progress row of environment {self._environment!r} should be at "
                f"{before.wal_offset} of WAL {before.wal_id}, but "
                + ("is gone" if row is None else f"is at {row['wal_offset']} of {row['wal_id']}")
            )

    async def _insert(self, entries: Sequence[Numbered]) -> set[int]:
        """Insert `entries` and all below them, save those whose `request_uuid` is there already.

        Returns the `command_id`s of the latter.
        """
        if not entries:
            return set()
        await self._connection.copy_records_to_table(
            "staged_commands",
            records=command_rows(self._environment, entries),
            columns=COMMAND_COLUMNS,
        )
        inserted = await self._connection.fetch(_INSERT_STAGED)
        left_out: set[int] = set()
        if len(inserted) < len(entries):
            left_out = {pair[0] for pair in entries} - {row["command_id"] for row in inserted}
            _log.warning("%d repeated request_uuids are left out", len(left_out))
            entries = [pair for pair in entries if pair[0] not in left_out]
        for table, columns, rows in child_rows(
            self._environment, entries, persist_digests=self._persist_digests
        ):
            await self._connection.copy_records_to_table(table, records=rows, columns=columns)
        await self._upsert_balances(entries)
        return left_out

    async def _upsert_balances(self, entries: Sequence[Numbered]) -> None:
        balances = newest_balances(entries)
        if balances:
            amounts, command_ids, timestamps = zip(*balances.values(), strict=True)
            await self._connection.execute(
                _UPSERT_BALANCES,
                self._environment,
                list(balances),
                amounts,
                command_ids,
                timestamps,
            )

    async def _insert_what_can_be(self, entries: Sequence[Numbered], left_out: set[int]) -> int:
        """Insert `entries` in order, those refused as dead letters; returns their number.

        Adds to `left_out` what `_insert` returns.
        """
        await self._connection.execute("SAVEPOINT span")
        try:
            repeated = await self._insert(entries)
            # Or every later span would go over them again.
            await self._connection.execute("DELETE FROM staged_commands")
        except CONTENT_ERRORS as error:
            if not is_content_error(error):
                raise
            await self._connection.execute("ROLLBACK TO SAVEPOINT span; RELEASE SAVEPOINT span")
            if len(entries) == 1:
                await self._bury(*entries[0], error)
                return 1
        else:
            await self._connection.execute("RELEASE SAVEPOINT span")
            left_out |= repeated
            return 0
        middle = len(entries) // 2
        older = await self._insert_what_can_be(entries[:middle], left_out)
        return older + await self._insert_what_can_be(entries[middle:], left_out)

    async def _bury(self, command_id: int, entry: Entry, error: Exception) -> None:
        _log.error("command %d (%s) is a dead letter", command_id, entry.request_uuid)
        await self._connection.execute(
            _INSERT_DEAD_LETTER,
            self._environment,
            command_id,
            entry.request_uuid,
            whole_entry(entry),
            sqlstate_of(error),
            _storable(describe(error)),
        )


async def _take_lock(connection: Connection, environment: str) -> None:
    key = advisory_key("replication", environment)
    if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", key):
        raise DatabaseUnavailable(
            f"another process replicates environment {environment!r} into this database: "
            f"it holds advisory lock {key}"
        )


async def _check_revision(connection: Connection) -> None:
    found, needed = await current_revision(connection), head_revision()
    if found != needed:
        raise RevisionMismatch(
            f"the database is at revision {found or 'none'}, this version needs {needed}: "
            "run `journal migrate`"
        )


def _storable(message: str) -> str:
    """`message` as a column of type text takes it."""
    valid = message.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return valid[:MAX_ERROR_CHARACTERS]
