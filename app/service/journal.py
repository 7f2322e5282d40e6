"""The running journal: what the API calls, and the order in which its parts start and stop."""

import asyncio
import logging
import math
import os
import time
from collections import deque
from enum import StrEnum
from functools import partial
from typing import Any, Final
from uuid import UUID

from app.chain import bulk
from app.chain.store import CommitmentStore
from app.embedded import EmbeddedPostgres
from app.errors import DatabaseUnavailable, DiskFull, InvariantError, JournalError, Unavailable
from app.keys import open_signer
from app.metrics import JournalMetrics
from app.model.codec import PreparedRequest
from app.replication.handover import ReplicationSettings
from app.replication.link import Progressed, Status
from app.replication.reader import Reader
from app.replication.supervisor import ReplicationSupervisor
from app.service.block_recovery import (
    LogExtent,
    catch_up,
    check_newest_block,
    check_reaches,
)
from app.service.block_view import BlockParts, BlockView
from app.service.blocks import BlockProducer, PendingBlock
from app.service.checkpoints import CheckpointKeeper
from app.service.compiled import GATHERING, LANES, load_in_background
from app.service.interpreter import tune_interpreter
from app.service.logged_blocks import LoggedBlocks
from app.service.opening import OpenedLog, ask_postgres, claim_data_dir, open_log, open_store
from app.settings import Settings
from app.wal.checkpoint import Checkpoint
from app.wal.files import FileSystem
from app.wal.reserve import NAME as RESERVE_NAME
from app.wal.reserve import Reserve
from app.wal.segments import list_segments
from app.wal.sync import open_syncer
from app.wal.writer import Appended, Committed, Outcome, Reached, WalWriter

_log = logging.getLogger(__name__)

EXIT_REFUSED: Final = 1
EXIT_WAL_FAILED: Final = 70
_LAG_SAMPLE_S: Final = 1.0


class State(StrEnum):
    """Where the service is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "shutting down"


class EntryStatus(StrEnum):
    """How far an entry has come."""

    DURABLE = "durable"
    REPLICATED = "replicated"
    DEAD_LETTER = "dead_letter"


class Journal:
    """One data directory, served. Everything but the writer's own work runs on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = JournalMetrics()
        self.state = State.STARTING
        self.dead_letters = 0
        self._files = FileSystem()
        self._embedded: EmbeddedPostgres | None = None
        self._reader: Reader | None = None
        self.blocks = BlockView()
        self._producer: BlockProducer | None = None
        self._writer: WalWriter[PendingBlock] | None = None
        self._keeper: CheckpointKeeper | None = None
        self._replication: ReplicationSupervisor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reserve = Reserve(self._files, settings.data_dir / RESERVE_NAME)
        self._lock_fd: int | None = None
        self._durable_offset = 0
        self._durable_command_id = 0
        # When the log was durable up to where: (offset, monotonic seconds), a sample now and then.
        self._durable_times: deque[tuple[int, float]] = deque()
        # Bytes that could not be written for want of room, until something can be written again.
        self._starved_bytes = 0
        # When to stop replicating, monotonic seconds; draining sets it.
        self._deadline = math.inf
        self._closing = asyncio.Lock()

    # -- life -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything, in the order of the promise.

        Raises `JournalError` when that must not be.
        """
        self._loop = asyncio.get_running_loop()
        settings = self.settings
        self._lock_fd = await asyncio.to_thread(claim_data_dir, self._files, settings)
        dsn = settings.database_url
        if settings.embedded:
            self._embedded = EmbeddedPostgres(settings.data_dir / "postgres")
            dsn = await asyncio.to_thread(self._embedded.start)
        self._reader = Reader(dsn, settings.environment)
        held = await ask_postgres(self._reader)
        syncer = await asyncio.to_thread(
            open_syncer, settings.wal_sync, self._files, self.metrics.io_uring_fallbacks.inc
        )
        self._reserve.release()  # opening a store on a full volume takes room
        store = await asyncio.to_thread(open_store, settings)
        opened = await asyncio.to_thread(
            open_log, self._files, settings, syncer, held, _now_ms, store
        )
        # Without an answer Postgres is known to be away.
        asked = held is not None and await check_newest_block(dsn, settings.environment, store)
        if not asked and opened.kept_from is not None:
            check_reaches(store, opened.log.wal_id, opened.kept_from)
        self.metrics.wal_replay_entries.inc(opened.entries_to_replicate)
        if held and held.progress:
            self.dead_letters = held.progress.dead_letters
        signer = await asyncio.to_thread(open_signer, settings, _now_ms)
        producer = self._producer = BlockProducer(
            store,
            settings.block_command_types,
            signer,
            opened.log.wal_id,
            opened.log.end,
            partial(self._reopen_store, opened.log.wal_id),
        )
        self.blocks.opened(
            BlockParts(
                producer,
                LoggedBlocks(self._files, settings.wal_dir, self._retained_offset),
                self._reader.block_commands,
                self.look_up,
            )
        )
        self._start_parts(opened, producer, dsn)
        if self.state is State.STARTING:
            self.state = State.SERVING
        tune_interpreter()
        if "block_commands" in settings.model_fields_set:
            # Small requests make large blocks then: ticks, the default, come alone.
            load_in_background(bulk.use, LANES, GATHERING)
        _log.info("entries can be acknowledged; synced with %s", opened.log.syncer_name)

    def _reopen_store(self, wal_id: str) -> CommitmentStore:
        """On the writer's thread: open the store anew and apply what the log has beyond it."""
        store = open_store(self.settings)
        try:
            segments = list_segments(self._files, self.settings.wal_dir)
            kept_from = self._keeper.current.retained_offset if self._keeper else 0
            start = max(store.wal_offset, kept_from, segments[0].start)
            catch_up(self._files, LogExtent(segments, wal_id, start, segments[-1].end), store)
        except BaseException:
            store.close()
            raise
        return store

    def _start_parts(self, opened: OpenedLog, blocks: BlockProducer, dsn: str) -> None:
        settings = self.settings
        self._durable_offset = opened.log.end
        self._durable_command_id = opened.next_command_id - 1
        self._durable_times.append((opened.log.end, time.monotonic()))
        self._keeper = CheckpointKeeper(
            self._files,
            settings.checkpoint_path,
            settings.wal_dir,
            opened.checkpoint,
            partial(self._keep_from, opened),
            self.metrics.hole_punched.inc,
            blocks.sync,
            stop_at_once,
            self._reserve,
        )
        self._keeper.start()
        opened.log.is_held_back = lambda: self._reserve.released
        opened.log.kept_from = self._retained_offset
        self._writer = WalWriter(
            opened.log,
            opened.index,
            blocks=blocks,
            next_command_id=opened.next_command_id,
            max_batch_entries=settings.max_batch_size,
            max_batch_bytes=settings.max_batch_bytes,
            queue_entries=settings.channel_capacity,
            queue_bytes=settings.max_queue_bytes,
            deliver=self._deliver,
            on_fatal=stop_at_once,
        )
        self._writer.start()
        self._replication = ReplicationSupervisor(
            opened.log.wal_id,
            opened.log.end,
            ReplicationSettings.of(settings, dsn),
            on_progress=self._progressed,
            on_error=self.metrics.replication_errors.inc,
            on_death=self.metrics.replication_failures.inc,
            on_fatal=stop_at_once,
        )
        self._replication.start()

    def drain(self) -> None:
        """Refuse new entries from now on; what is queued is still made durable and answered."""
        self.state = State.DRAINING
        self.blocks.close()
        deadline = time.monotonic() + self.settings.shutdown_timeout_s
        self._deadline = min(self._deadline, deadline)

    async def close(self) -> None:
        """Settle, and stop everything. May be repeated."""
        async with self._closing:
            await self._settle()
            if self._writer is not None:
                await asyncio.to_thread(self._writer.close)
            if self._keeper is not None:
                await self._keeper.stop()
            self._writer = self._keeper = None
            if self._producer is not None:
                try:
                    await asyncio.to_thread(self._producer.close)
                except JournalError as error:
                    # All is durable in the log, but after a failed sync no stop is a clean one.
                    stop_at_once(error)
            self._producer = None
            if self._reader is not None:
                await self._reader.close()
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.stop)
            if self._lock_fd is not None:
                self._files.close(self._lock_fd)
            self._reader = self._embedded = self._lock_fd = None

    async def _settle(self) -> None:
        """Make durable and answer what was accepted, and replicate it, up to the limit."""
        self.drain()
        if self._writer is None or self._replication is None:
            return
        self._replication.publish(await self._durable_end())
        if not await self._replication.drain(max(0.0, self._deadline - time.monotonic())):
            _log.warning("stopped with replication behind; it goes on at the next start")

    # -- what the API asks ----------------------------------------------------------------------

    async def append(self, request: PreparedRequest) -> Appended:
        """Journal a request; returns once it is durable.

        Raises `Unavailable`, `RequestConflict` or `DiskFull`; nothing of it was written then.
        """
        if self.state is not State.SERVING or self._writer is None or self._loop is None:
            raise Unavailable(self.state.value)
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._writer.submit(request, partial(_resolve, future))
        outcome = await future
        if isinstance(outcome, Appended):
            return outcome
        if isinstance(outcome, Reached):
            raise InvariantError("a request was answered as a barrier")
        raise outcome

    async def flush(self) -> Checkpoint:
        """Wait until all that was accepted before is durable, replicated and in the checkpoint."""
        if self._keeper is None:
            raise Unavailable(self.state.value)
        return await self._keeper.wait_until(await self._durable_end())

    def checkpoint(self) -> dict[str, Any]:
        """The answer to `GET /checkpoint`."""
        if self._keeper is None or self._replication is None:
            raise Unavailable(self.state.value)
        current = self._keeper.current
        return {
            "environment": current.environment,
            "wal_id": current.wal_id,
            "wal_offset": current.wal_offset,
            "last_command_id": current.last_command_id,
            "last_l2_seq": current.last_l2_seq,
            "durable_offset": self._durable_offset,
            "unreplicated_bytes": max(0, self._durable_offset - current.wal_offset),
            "replication": self._replication.status.state,
            "dead_letters": self.dead_letters,
        }

    async def look_up(self, request_uuid: UUID) -> tuple[int, EntryStatus] | None:
        """The command_id and status of an entry; None when it is unknown.

        Raises `DatabaseUnavailable` when only Postgres could know, or could know better, and does
        not.
        """
        if self._writer is None or self._keeper is None or self._reader is None:
            raise Unavailable(self.state.value)
        known = self._writer.index.get(request_uuid.int)
        replicated_id = self._keeper.current.last_command_id
        if known is not None and known > replicated_id:
            return known, EntryStatus.DURABLE
        if known is not None and not self.dead_letters:
            return known, EntryStatus.REPLICATED
        found = await self._reader.command(request_uuid)
        if found is not None:
            status = EntryStatus.DEAD_LETTER if found.dead_letter else EntryStatus.REPLICATED
            return found.command_id, status
        if known is not None:
            return known, EntryStatus.DURABLE
        oldest = self._writer.index.oldest_command_id
        if oldest is not None and replicated_id < oldest - 1:
            raise DatabaseUnavailable(
                f"replication has reached command_id {replicated_id}; entries up to {oldest - 1} "
                "that are not in Postgres yet can't be looked up"
            )
        return None

    def block_height(self, request_uuid: UUID) -> int | None:
        """The block that covers an entry; None when none does."""
        return None if self._producer is None else self._producer.height_of(request_uuid.bytes)

    # -- health and metrics ---------------------------------------------------------------------

    def readiness(self) -> tuple[bool, dict[str, dict[str, str]]]:
        """Whether entries can be acknowledged, and the state of each part."""
        disk = "full" if self._is_starved() else "ok"
        status = self._replication.status if self._replication else Status("down", "not started")
        degraded = self.dead_letters > 0 and status.state in ("streaming", "catching_up")
        parts = {
            "wal": {"state": "ok" if self.state is State.SERVING else self.state.value},
            "disk": {"state": disk},
            "replication": {"state": "degraded" if degraded else status.state},
            **self._block_parts(),
        }
        detail = f"{self.dead_letters} dead letters" if degraded else status.detail
        if detail:
            parts["replication"]["detail"] = detail
        return self.state is State.SERVING and disk == "ok", parts

    def collect(self) -> None:
        """Bring the gauges up to date, before a scrape."""
        metrics = self.metrics
        if self._writer is None or self._keeper is None:
            return
        checkpoint = self._keeper.current
        metrics.queue_entries.set(self._writer.waiting_entries)
        metrics.wal_file_size.set(self._durable_offset)
        metrics.checkpoint_offset.set(checkpoint.wal_offset)
        metrics.unreplicated.set(max(0, self._durable_offset - checkpoint.wal_offset))
        metrics.replication_backlog.set(
            max(0, self._durable_command_id - checkpoint.last_command_id)
        )
        metrics.replication_lag.set(self._lag_s(checkpoint.wal_offset))
        if self._producer is not None:
            metrics.blocks_unsigned.set(self._producer.unsigned)
        metrics.volume(self._files.volume(self.settings.wal_dir))

    def _block_parts(self) -> dict[str, dict[str, str]]:
        if self._producer is None:
            return {"commitments": {"state": "starting"}, "signing": {"state": "starting"}}
        commitments = "behind" if self._producer.starved else "ok"
        return {
            "commitments": {"state": commitments},
            "signing": {"state": self._producer.signing},
        }

    def _is_starved(self) -> bool:
        if self._reserve.released:
            return True
        if not self._starved_bytes:
            return False
        return self._files.volume(self.settings.wal_dir).available_bytes < self._starved_bytes

    def _lag_s(self, replicated: int) -> float:
        times = self._durable_times
        while len(times) > 1 and times[0][0] <= replicated:
            times.popleft()
        offset, since = times[0]
        return max(0.0, time.monotonic() - since) if offset > replicated else 0.0

    async def _durable_end(self) -> int:
        """The end of the log once all that was accepted before is durable."""
        if self._writer is None or self._loop is None:
            raise Unavailable(self.state.value)
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._writer.barrier(partial(_resolve, future))
        reached = await future
        if not isinstance(reached, Reached):
            raise InvariantError("a barrier was answered as a request")
        return reached.wal_offset

    # -- what the parts report ------------------------------------------------------------------

    def _retained_offset(self) -> int:
        return self._keeper.current.retained_offset if self._keeper else 0

    def _keep_from(self, opened: OpenedLog) -> int:
        start = opened.index.start_offset
        behind = self._durable_offset - self.settings.wal_retain_bytes
        return min(behind, self._durable_offset if start is None else start)

    def _deliver(self, committed: Committed) -> None:
        """On the writer's thread: hand a pass over to the loop, with one wake-up."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._committed, committed)

    def _committed(self, committed: Committed) -> None:
        if committed.entries:
            self._starved_bytes = 0
            self._durable_command_id += committed.entries
        # Also without entries: a new segment stays where the record behind it found no room.
        if committed.end_offset > self._durable_offset:
            self._durable_offset = committed.end_offset
            if self._replication is not None:
                self._replication.publish(committed.end_offset)
            self._sample_durable_time()
        for submission, outcome in committed.outcomes:
            if isinstance(outcome, DiskFull) and submission.request is not None:
                self._starved_bytes = max(self._starved_bytes, submission.request.size_bytes)
            submission.deliver(outcome)
        self.metrics.committed(committed)
        if committed.block_height is not None:
            self.blocks.produced()

    def _sample_durable_time(self) -> None:
        now = time.monotonic()
        times = self._durable_times
        if self._keeper and len(times) == 1 and times[0][0] <= self._keeper.current.wal_offset:
            times.clear()
        if not times or now - times[-1][1] >= _LAG_SAMPLE_S:
            times.append((self._durable_offset, now))

    def _progressed(self, progress: Progressed) -> None:
        if progress.dead_letters > self.dead_letters:
            self.metrics.dead_letters.inc(progress.dead_letters - self.dead_letters)
        self.dead_letters = progress.dead_letters
        self.metrics.progressed(progress)
        if self._keeper is not None:
            self._keeper.progressed(progress)


def stop_at_once(error: BaseException) -> None:
    """End the process without acknowledging anything: what it needs can't be trusted any more."""
    if isinstance(error, JournalError):
        _log.critical("the log failed, stopping at once: %s", error)
    else:
        _log.critical("an error that was not expected, stopping at once", exc_info=error)
    logging.shutdown()
    os._exit(EXIT_WAL_FAILED)


def _resolve(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    """Give the outcome to whoever still waits for it."""
    if not future.done():
        future.set_result(outcome)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
