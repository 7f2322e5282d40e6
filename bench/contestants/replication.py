"""Replication: how fast a backlog goes into Postgres, beside the sink's own SQL driven straight.

The backlog is journaled while the replication process is stopped (SIGSTOP); the clock runs from
when it goes on (SIGCONT) until a flush says that all of it is in Postgres. The bare pipeline sends
to the same server what the sink sends for as many entries, recorded beforehand: COPY, INSERT …
SELECT and the progress row, 1000 entries a transaction, without log, decoding or rows to be made.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

from app.replication import migrations
from app.replication.connection import SINK_LIMITS, open_connection
from app.replication.postgres import CREATE_STAGING, Sink
from app.replication.rows import Progress
from app.wal.record import Batch
from bench.contestant import Metrics, Round, Row, put_on
from bench.contestants.journal import Load, Service
from bench.contestants.postgres import Cluster
from bench.load import Job
from bench.records import prepared

_TRANSACTION_ENTRIES: Final = 1000
_REQUEST_ENTRIES: Final = 100
_ENTRIES_PER_S: Final = 20_000
Statement = Callable[[Any], Coroutine[Any, Any, Any]]


class Replication:
    """The service with a Postgres, and that Postgres without the service."""

    name = "replication"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._started = False
        self._service: Service | None = None

    def missing(self) -> str | None:
        """It comes with the development environment."""
        return None

    def rows(self) -> Sequence[Row]:
        """Under load, at a fixed rate, and after it."""
        full, even = Load(100, 16), Load(1, rate=2000)
        return [
            Row(
                "journal-100-replicated",
                f"journal with replication, {full.label}",
                lambda turn: self._loaded(turn, full),
            ),
            Row(
                "journal-2000-replicated",
                f"journal with replication, {even.label}",
                lambda turn: self._loaded(turn, even),
            ),
            Row("replicated", "replication of a backlog", self._catch_up),
            Row("copy", "bare COPY pipeline, the sink's own SQL", self._copy),
        ]

    def launch(self, scratch: Path) -> None:
        """Start server and service."""
        self._cluster.start(scratch)
        self._started = True
        self._bare_url = self._cluster.database("bare")
        settings = {
            "DATABASE_URL": self._cluster.database("replicated"),
            "AUTO_MIGRATE": "true",
        }
        self._service = Service(self.name, settings)
        self._service.launch(scratch)

    def ready(self) -> None:
        """Make the tables, and wait for the service."""
        migrations.upgrade(self._bare_url)
        self._replicating.ready()
        self._replicating.flush()

    def close(self) -> None:
        """Stop the service, and the server unless others need it."""
        if self._service is not None:
            self._service.stop()
        if self._started:
            self._cluster.stop()

    @property
    def _replicating(self) -> Service:
        if self._service is None:
            raise RuntimeError("the service was not launched")
        return self._service

    def _loaded(self, turn: Round, load: Load) -> Metrics:
        """A load; what it leaves behind is replicated before anybody else has a turn."""
        metrics = put_on(turn, load.job(self._replicating.url, turn.measured))
        self._replicating.flush()
        return metrics

    def _catch_up(self, turn: Round) -> Metrics:
        process = self._replicating.replication
        process.send_signal(signal.SIGSTOP)
        try:
            entries = self._journal(turn)
        finally:
            process.send_signal(signal.SIGCONT)
        started = perf_counter()
        self._replicating.flush()
        return {"entries_per_s": entries / (perf_counter() - started)}

    def _journal(self, turn: Round) -> int:
        job = Job(
            driver="http",
            target=f"{self._replicating.url}/entries",
            entries=_REQUEST_ENTRIES,
            in_flight=16,
            warm_s=0,
            seconds=600,
            sends=_entries(turn) // _REQUEST_ENTRIES,
        )
        return turn.generator.run(job).entries

    def _copy(self, turn: Round) -> Metrics:
        return asyncio.run(_drive(self._bare_url, _entries(turn)))


def _entries(turn: Round) -> int:
    """How many make about a slice: whole transactions."""
    wanted = int(_ENTRIES_PER_S * turn.seconds)
    return max(_TRANSACTION_ENTRIES, wanted // _TRANSACTION_ENTRIES * _TRANSACTION_ENTRIES)


@dataclass
class Recorder:
    """Stands in for the sink's connection, to record what it is asked for."""

    statements: list[Statement] = field(default_factory=list)
    _staged: int = 0
    _updates: int = 0

    async def execute(self, statement: str, *values: object) -> str:
        """Record a statement. The first UPDATE finds no progress row, later ones do."""
        self.statements.append(lambda connection: connection.execute(statement, *values))
        if "UPDATE" not in statement.split(None, 1)[0]:
            return "INSERT 0 1"
        self._updates += 1
        return "UPDATE 1" if self._updates > 1 else "UPDATE 0"

    async def fetch(self, statement: str, *values: object) -> range:
        """Record a query; it returns a row for each that was staged."""
        self.statements.append(lambda connection: connection.fetch(statement, *values))
        return range(self._staged)

    async def copy_records_to_table(self, table: str, *, records: Any, columns: Any) -> None:
        """Record a COPY."""
        rows = list(records)
        self._staged = max(self._staged, len(rows))
        self.statements.append(
            lambda connection: connection.copy_records_to_table(
                table, records=rows, columns=columns
            )
        )


async def _drive(url: str, entries: int) -> Metrics:
    """Do what the sink does for `entries` entries of an environment of their own."""
    environment = f"bare-{uuid4().hex}"
    progress = Progress(wal_id=environment)
    recorder = Recorder()
    sink = Sink(recorder, environment, persist_digests=True)  # type: ignore[arg-type]
    await recorder.execute(CREATE_STAGING)
    requests = prepared(entries // _TRANSACTION_ENTRIES, _TRANSACTION_ENTRIES)
    for number, request in enumerate(requests):
        batch = Batch(
            offset=number + 1,
            first_command_id=progress.last_command_id + 1,
            commands=request.entries,
        )
        progress = await sink.apply([batch], number + 1, progress)
    connection = await open_connection(url, "bench", SINK_LIMITS)
    try:
        started = perf_counter()
        for statement in recorder.statements:
            await statement(connection)
        return {"entries_per_s": entries / (perf_counter() - started)}
    finally:
        await connection.close()
