"""The replication process: follows the log up to the durable offset it is told, and fills Postgres.

It only reads the WAL, owns the one writing connection to Postgres, and ends at once when the worker
does.
"""

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import sys
from time import perf_counter
from typing import Final

from app.errors import (
    CorruptionError,
    DatabaseUnavailable,
    JournalError,
    ReplicationRefused,
    RevisionMismatch,
    WalUnreadable,
)
from app.logs import configure_logging
from app.replication import migrations
from app.replication.handover import ReplicationSettings
from app.replication.link import (
    CATCHING_UP,
    DOWN,
    STOPPED,
    STREAMING,
    Drain,
    Durable,
    Progressed,
    ReplicationEnd,
    Status,
)
from app.replication.postgres import Sink
from app.replication.rows import Progress
from app.replication.tail import Chunk, Tail, missing, reading
from app.tasks import start_lasting
from app.wal.checkpoint import read_checkpoint
from app.wal.files import FileSystem

_log = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_CATCHING_UP_BYTES: Final = 8 << 20
# How soon an idle connection that is gone is noticed.
_IDLE_S: Final = 1.0


class Replicator:
    """One environment's log into one database, for as long as the worker lives."""

    def __init__(self, settings: ReplicationSettings, wal_id: str, link: ReplicationEnd) -> None:
        self._settings = settings
        self._wal_id = wal_id
        self._link = link
        self._files = FileSystem()
        self._durable = 0
        self._replicated = -1  # not known yet
        self._news = asyncio.Event()
        self._draining = False
        self._status: Status | None = None

    async def run(self) -> None:
        """Replicate until drained; what may pass is retried, contradictions stop it."""
        listener = start_lasting(self._listen(), "replication-link", _end_at_once)
        await self._next_news()
        delay_s = _FIRST_DELAY_S
        while True:
            started = perf_counter()
            try:
                await self._stream()
                break
            except (DatabaseUnavailable, WalUnreadable) as error:
                await self._report(DOWN, str(error))
                if self._draining and self._replicated == self._durable:
                    break
            except (ReplicationRefused, CorruptionError) as error:
                await self._report(STOPPED, str(error))
                await self._until_draining()
                break
            if perf_counter() - started > _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads retries
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        listener.cancel()

    async def _stream(self) -> None:
        sink = await self._connect()
        tail: Tail | None = None
        try:
            progress = await self._agree(await sink.read_progress())
            tail = Tail(self._files, self._settings.wal_dir, progress.wal_offset)
            while True:
                if self._durable <= tail.offset:
                    await self._report(STREAMING)
                if not await self._wait_for(tail.offset, sink):
                    return
                behind = self._durable - tail.offset
                chunk = await self._fill(tail)
                # Not before: it could be down again as soon as it is to read.
                await self._report(CATCHING_UP if behind > _CATCHING_UP_BYTES else STREAMING)
                progress = await self._apply(sink, chunk, progress)
        finally:
            if tail is not None:
                tail.close()
            await sink.close()

    async def _connect(self) -> Sink:
        settings = self._settings
        try:
            return await self._connect_sink()
        except RevisionMismatch:
            if not settings.migrates_at_start:
                raise
        # Only where something is to be migrated: its statements may take their time, so that a
        # server that falls silent meanwhile would go unnoticed for as long.
        await asyncio.to_thread(migrations.upgrade, settings.database_url)
        return await self._connect_sink()

    async def _connect_sink(self) -> Sink:
        settings = self._settings
        return await Sink.connect(
            settings.database_url, settings.environment, persist_digests=settings.persist_digests
        )

    async def _apply(self, sink: Sink, chunk: Chunk, progress: Progress) -> Progress:
        started = perf_counter()
        after = await sink.apply(chunk.batches, chunk.end, progress)
        await self._send_progress(after, chunk.entries, perf_counter() - started)
        return after

    async def _agree(self, progress: Progress | None) -> Progress:
        """Check the progress row against the log.

        Raises `ReplicationRefused` where they contradict.
        """
        with reading(self._settings.checkpoint_path):
            checkpoint = read_checkpoint(self._files, self._settings.checkpoint_path)
        kept_from = checkpoint.retained_offset if checkpoint else 0
        known = Progress(wal_id=self._wal_id) if progress is None else progress
        if known.wal_id != self._wal_id:
            raise ReplicationRefused(
                f"Postgres holds environment {self._settings.environment!r} as of the log "
                f"{known.wal_id}; this is the log {self._wal_id}. Nothing is inserted; see "
                "`journal adopt`"
            )
        if known.wal_offset > self._durable:
            raise ReplicationRefused(
                f"Postgres says that the log was replicated up to {known.wal_offset}, but it "
                f"ends at {self._durable}: this is an older copy of it. Nothing is inserted"
            )
        if known.wal_offset < kept_from:
            raise ReplicationRefused(missing(known.wal_offset, kept_from))
        await self._send_progress(known, 0, 0.0)
        return known

    async def _wait_for(self, offset: int, sink: Sink) -> bool:
        """Wait until the log goes on behind `offset`; False when drained instead.

        Raises `DatabaseUnavailable` when the connection is lost meanwhile, and the lock with it.
        """
        while self._durable <= offset:
            if self._draining:
                return False
            if sink.closed:
                raise DatabaseUnavailable("the connection to Postgres was lost")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_IDLE_S):
                    await self._next_news()
        return True

    async def _fill(self, tail: Tail) -> Chunk:
        """Read a chunk; wait up to the flush interval for a fuller one."""
        wanted = self._settings.replication_batch_size
        chunk = tail.read(self._durable, wanted)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.flush_interval_ms / 1000
        while chunk.entries < wanted and self._durable == tail.offset and not self._draining:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._next_news()
            except TimeoutError:
                break
            more = tail.read(self._durable, wanted - chunk.entries)
            chunk = Chunk(chunk.batches + more.batches, chunk.entries + more.entries, more.end)
        return chunk

    async def _listen(self) -> None:
        while (message := await self._link.receive()) is not None:
            if isinstance(message, Durable):
                self._durable = max(self._durable, message.offset)
            elif isinstance(message, Drain):
                self._draining = True
            self._news.set()
        _log.info("the worker is gone, replication ends")
        os._exit(0)

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def _until_draining(self) -> None:
        while not self._draining:
            await self._next_news()

    async def _report(self, state: str, detail: str = "") -> None:
        status = Status(state, detail)
        if status == self._status:
            if detail:
                await self._link.send(status)  # for the worker to count
            return
        if state == STOPPED:
            _log.error("replication stopped: %s", detail)
        elif state == DOWN:
            _log.warning("replication is down, retrying: %s", detail)
        elif self._status is None or self._status.state in (DOWN, STOPPED):
            _log.info("replication is %s", state)
        self._status = status
        await self._link.send(status)

    async def _send_progress(self, progress: Progress, entries: int, insert_s: float) -> None:
        self._replicated = progress.wal_offset
        message = Progressed(
            wal_offset=progress.wal_offset,
            last_command_id=progress.last_command_id,
            last_l2_seq=progress.last_l2_seq,
            dead_letters=progress.dead_letters,
            entries=entries,
            insert_s=insert_s,
        )
        await self._link.send(message)


def _end_at_once(error: BaseException) -> None:
    """Deaf to the worker, it would go on without it; it is started again."""
    _log.critical("listening to the worker failed", exc_info=error)
    logging.shutdown()
    os._exit(1)


def main(arguments: list[str]) -> int:
    """Entry point of the process: the descriptor of its end of the link, and the id of the log."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker says when to end
    descriptor, wal_id = int(arguments[0]), arguments[1]
    settings = ReplicationSettings.taken_from(os.environ)
    configure_logging(settings.log_format, settings.log_level)
    link = ReplicationEnd(socket.socket(fileno=descriptor))
    try:
        asyncio.run(Replicator(settings, wal_id, link).run())
    except JournalError as error:
        _log.critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
