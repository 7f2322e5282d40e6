"""The writer thread.

The one owner of the log. It drains what is waiting, decides duplicates, builds one record, appends,
syncs, and only then lets anything be acknowledged (protocol, sections 1, 2 and 5).
"""

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Final, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID

from msgspec import Raw, Struct

from app import failpoints
from app.chain.header import Delegation, Header, Roots
from app.errors import DiskFull, RequestConflict, Unavailable
from app.model.codec import PreparedRequest
from app.model.packing import array_header
from app.wal.dedup import DuplicateIndex
from app.wal.log import Log
from app.wal.plan import Plan, Planner, Verdict
from app.wal.record import PackedBatch, encode_batch

_log = logging.getLogger(__name__)

# What a record holds besides its commands, and what an array item costs at most.
_RECORD_OVERHEAD_BYTES: Final = 256
# What a block adds to it: header, roots and a delegation; and each of its indices, at most.
_BLOCK_OVERHEAD_BYTES: Final = 1024
_INDEX_BYTES: Final = 3
_UUID_BYTES: Final = 16


class Duplicate(Struct, frozen=True, gc=False):
    """An entry that had been journaled before, with its first command_id."""

    request_uuid: UUID
    command_id: int


class Appended(Struct, frozen=True, gc=False, kw_only=True):
    """A durable request: what its acknowledgement says (protocol, section 2)."""

    count: int
    first_command_id: int | None
    last_command_id: int | None
    wal_offset: int
    block_height: int | None = None
    duplicates: list[Duplicate] = []


class Reached(NamedTuple):
    """All that was accepted before a barrier is durable up to this offset."""

    wal_offset: int


Outcome = Appended | Reached | RequestConflict | Unavailable | DiskFull


class PendingBlock(Protocol):
    """A block on its way into a record."""

    @property
    def header(self) -> Header:
        """The header, signed if there is a key."""

    @property
    def indices(self) -> list[int]:
        """Which of the record's commands it covers."""

    @property
    def authority(self) -> Delegation | None:
        """The delegation of its signer, in the first block it covers."""

    @property
    def roots(self) -> Roots:
        """The roots after the block."""


Pending = TypeVar("Pending", bound=PendingBlock)


class Blocks(Protocol[Pending]):
    """What makes blocks of batches: prepared before the record, applied after its sync."""

    def prepare(self, requests: Sequence[PreparedRequest]) -> Pending | None:
        """The block of a batch of these requests, if it has one.

        Raises `DiskFull`; nothing is changed.
        """

    def applied(self, pending: Pending | None, first_command_id: int, end: int) -> None:
        """The record is durable up to `end`: apply its block, if it has one."""

    def height_of(self, request_uuid: bytes) -> int | None:
        """The block that covers a command; None when none does."""


class Submission:
    """A request on its way through the writer; a barrier when `request` is None."""

    __slots__ = ("deliver", "request", "submitted_at")

    def __init__(
        self,
        request: PreparedRequest | None,
        deliver: Callable[[Outcome], None],
        submitted_at: float,
    ) -> None:
        self.request = request
        self.deliver = deliver
        self.submitted_at = submitted_at


@dataclass(frozen=True, slots=True)
class Committed:
    """One pass of the writer: who gets which outcome, and what it took. Seconds are wall time."""

    outcomes: list[tuple[Submission, Outcome]]
    taken_at: float
    entries: int = 0
    duplicates: int = 0
    append_s: float = 0.0
    sync_s: float = 0.0
    end_offset: int = 0
    block_height: int | None = None


class WalWriter(Generic[Pending]):
    """Queue and thread in front of a `Log`.

    `deliver` is called on the writer's thread, once a pass, after the sync. `on_fatal` is called on
    it when the process must stop: it must not return to anything that acknowledges.
    """

    def __init__(
        self,
        log: Log,
        index: DuplicateIndex,
        *,
        blocks: Blocks[Pending] | None = None,
        next_command_id: int,
        max_batch_entries: int,
        max_batch_bytes: int,
        queue_entries: int,
        queue_bytes: int,
        deliver: Callable[[Committed], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.index = index
        self._log = log
        self._planner = Planner(index, log.read_commands)
        self._blocks = blocks
        self._next_command_id = next_command_id
        self._max_batch_entries = max_batch_entries
        self._max_batch_bytes = max_batch_bytes
        self._queue_entries = queue_entries
        self._queue_bytes = queue_bytes
        self._deliver = deliver
        self._on_fatal = on_fatal
        self._queue: SimpleQueue[Submission | None] = SimpleQueue()
        # Each counter has one writing thread, so neither needs a lock: what waits is their
        # difference.
        self._submitted_entries = self._submitted_bytes = 0
        self._taken_entries = self._taken_bytes = 0
        self._closed: str | None = None
        self._thread = threading.Thread(target=self._run, name="wal-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def waiting_entries(self) -> int:
        """How many entries wait to be taken into a record."""
        return self._submitted_entries - self._taken_entries

    def submit(self, request: PreparedRequest, deliver: Callable[[Outcome], None]) -> None:
        """Queue a request.

        Raises `Unavailable` when the queue is full or closed; an empty one admits any.
        """
        if self._closed is not None:
            raise Unavailable(self._closed)
        entries = self._submitted_entries - self._taken_entries
        size = self._submitted_bytes - self._taken_bytes
        if entries and (
            entries + len(request.keys) > self._queue_entries
            or size + request.size_bytes > self._queue_bytes
        ):
            raise Unavailable(
                f"the queue is full: {entries} entries ({size} bytes) wait for the log"
            )
        self._submitted_entries += len(request.keys)
        self._submitted_bytes += request.size_bytes
        self._queue.put(Submission(request, deliver, perf_counter()))

    def barrier(self, deliver: Callable[[Outcome], None]) -> None:
        """Deliver `Reached` once all that was queued before is durable."""
        self._queue.put(Submission(None, deliver, perf_counter()))

    def refuse(self, reason: str) -> None:
        """Refuse all further requests; what is queued still becomes durable."""
        self._closed = reason

    def close(self) -> None:
        """Write what is queued, stop the thread, close the log."""
        if self._closed is None:
            self._closed = "shutting down"
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._log.close()

    def _run(self) -> None:
        try:
            is_last = False
            while not is_last:
                batch, is_last = self._drain()
                if batch:
                    self._commit(batch)
                # However large it is, it would be kept until the next one is there.
                del batch
        except BaseException as error:  # noqa: BLE001 - whatever it is, nothing more may be acknowledged
            self._on_fatal(error)

    def _drain(self) -> tuple[list[Submission], bool]:
        """Wait for a request, then take what else is waiting, up to the batch limits."""
        batch: list[Submission] = []
        entries = size = 0
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if item.request is not None:
                entries += len(item.request.keys)
                size += item.request.size_bytes
            if entries >= self._max_batch_entries or size >= self._max_batch_bytes:
                break
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
        self._taken_entries += entries
        self._taken_bytes += size
        return batch, item is None

    def _commit(self, batch: list[Submission]) -> None:
        taken_at = perf_counter()
        plan = Plan(self._next_command_id)
        verdicts = [self._place(submission, plan) for submission in batch]
        failure: DiskFull | Unavailable | None = None
        block: Pending | None = None
        append_s = sync_s = 0.0
        if plan.keys:
            try:
                block = self._prepare_block(plan)
                failpoints.reach(failpoints.BLOCK_PREPARED)
                offset, end = self._append(plan, block)
                failpoints.reach(failpoints.RECORD_APPENDED)
            except (DiskFull, Unavailable) as error:
                failure = error
            else:
                append_s = perf_counter() - taken_at
                self._log.sync()
                failpoints.reach(failpoints.RECORD_SYNCED)
                sync_s = perf_counter() - taken_at - append_s
                self._next_command_id += len(plan.keys)
                self.index.add(offset, end, plan.first_command_id, plan.keys)
                if self._blocks:
                    self._blocks.applied(block, plan.first_command_id, end)
                failpoints.reach(failpoints.BLOCK_APPLIED)
        written = _Written(plan.first_command_id, self._log.end, failure, block)
        self._deliver(
            Committed(
                outcomes=[
                    (submission, self._outcome(submission.request, verdict, written))
                    for submission, verdict in zip(batch, verdicts, strict=True)
                ],
                taken_at=taken_at,
                entries=len(plan.keys) if failure is None else 0,
                duplicates=plan.duplicates,
                append_s=append_s + sync_s,
                sync_s=sync_s,
                end_offset=self._log.end,
                block_height=None if block is None or failure else block.header.batch_seq,
            )
        )

    def _place(self, submission: Submission, plan: Plan) -> Verdict | None:
        request = submission.request
        return None if request is None else self._planner.place(request, plan)

    def _prepare_block(self, plan: Plan) -> Pending | None:
        """The block of a plan; its entries are looked at only where there may be one."""
        if self._blocks is None:
            return None
        return self._blocks.prepare(plan.requests if plan.may_make_block else ())

    def _append(self, plan: Plan, block: Pending | None) -> tuple[int, int]:
        size = plan.size_bytes + _RECORD_OVERHEAD_BYTES
        if block is not None:
            size += _BLOCK_OVERHEAD_BYTES + _INDEX_BYTES * len(block.indices)
        offset = self._log.reserve(size, plan.first_command_id)
        record = PackedBatch(
            offset=offset,
            first_command_id=plan.first_command_id,
            commands=Raw(array_header(len(plan.keys))),
        )
        if block is not None:
            record.header, record.roots = block.header, block.roots
            record.block_indices, record.authority = block.indices, block.authority
        return offset, self._log.append(*encode_batch(record, plan.packed))

    def _outcome(
        self, request: PreparedRequest | None, verdict: Verdict | None, written: "_Written"
    ) -> Outcome:
        if request is None or verdict is None:
            return Reached(written.end)
        if written.failure is not None and verdict.needs_record:
            return written.failure
        if verdict.refusal is not None:
            return verdict.refusal
        taken, first = verdict.taken, verdict.first_command_id
        return Appended(
            count=len(request.keys),
            first_command_id=first if taken else None,
            last_command_id=first + taken - 1 if taken else None,
            wal_offset=written.end if verdict.needs_record else verdict.end_offset,
            block_height=self._height(request, verdict, written),
            duplicates=[
                Duplicate(UUID(int=request.keys[at]), command_id)
                for at, command_id in verdict.repeated
            ],
        )

    def _height(
        self, request: PreparedRequest, verdict: Verdict, written: "_Written"
    ) -> int | None:
        """The block that covers a command of the request: this record's, else a duplicate's own."""
        block, first = written.block, written.first_command_id
        if block is not None:
            start = verdict.first_command_id - first
            at = bisect_left(block.indices, start)
            if at < len(block.indices) and block.indices[at] < start + verdict.taken:
                return block.header.batch_seq
            positions = {command_id - first for _, command_id in verdict.repeated}
            if not positions.isdisjoint(block.indices):
                return block.header.batch_seq
        if self._blocks is None:
            return None
        for at, command_id in verdict.repeated:
            if command_id < first:
                height = self._blocks.height_of(request.keys[at].to_bytes(_UUID_BYTES))
                if height is not None:
                    return height
        return None


class _Written(NamedTuple):
    """What became of a plan's record."""

    first_command_id: int
    end: int
    failure: DiskFull | Unavailable | None
    block: PendingBlock | None
