"""The journal's own parts on a simulated disk, and what the world outside knows of it meanwhile.

Here is no rule of the product's: a `World` holds what was acknowledged and replicated, and
`recovered` compares that with what an independent reader finds in the log.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack

from app.errors import DiskFull, StartRefused
from app.model.codec import PreparedRequest
from app.replication.reader import EnvironmentSummary
from app.replication.rows import Progress
from app.service.opening import OpenedLog, lock_wal, open_log
from app.settings import Settings, WalTail
from app.wal.sync import FdatasyncSyncer
from app.wal.writer import Appended, Committed, Outcome, WalWriter
from tests.support.foreign_wal import read_segments
from tests.support.simulated_disk import Disk, SimulatedFiles

DATA_DIR: Final = Path("/srv/data")
DEDUP_WINDOW: Final = 12
SEGMENT_BYTES: Final = 4096
NO_LIMIT: Final = 1 << 40
LIMIT_S: Final = 30

# Below what the settings allow: small segments make short logs show what long ones do.
SETTINGS: Final = Settings(
    data_dir=DATA_DIR, environment="test", allow_new_wal=True, dedup_window=DEDUP_WINDOW
).model_copy(update={"wal_segment_bytes": SEGMENT_BYTES})


class Journaled(NamedTuple):
    """An entry that must be found: its id, its content, and the end of its record."""

    command_id: int
    request_uuid: UUID
    content: dict[str, Any]
    end: int


@dataclass(frozen=True, slots=True)
class World:
    """What clients and Postgres know.

    `settled` entries were acknowledged, or read from a log that was opened since; requests that are
    `waiting` were sent and not answered. `replicated` is the highest offset that Postgres ever had.
    """

    settled: tuple[Journaled, ...] = ()
    waiting: tuple[PreparedRequest, ...] = ()
    progress: Progress | None = None
    replicated: int = 0

    @property
    def facts(self) -> tuple[int, int, int]:
        """What tells one from another in the same workload."""
        at = self.progress.wal_offset if self.progress else 0
        return len(self.settled), len(self.waiting), at

    @property
    def ids(self) -> dict[UUID, int]:
        """The newest `command_id` of each `request_uuid`."""
        return {each.request_uuid: each.command_id for each in self.settled}

    @property
    def ends(self) -> list[int]:
        """The ends of all records."""
        return sorted({each.end for each in self.settled})

    def sent(self, requests: Sequence[PreparedRequest]) -> "World":
        return replace(self, waiting=tuple(requests))

    def answered(self, request: PreparedRequest, outcome: Outcome) -> "World":
        """The first of the waiting requests has its answer."""
        assert self.waiting[0] is request
        settled = self.settled
        if isinstance(outcome, Appended):
            settled += self._acknowledged(request, outcome)
        else:
            assert isinstance(outcome, DiskFull), outcome
        return replace(self, settled=settled, waiting=self.waiting[1:])

    def replicated_up_to(self, end: int, wal_id: str) -> "World":
        newest = max(each.command_id for each in self.settled if each.end <= end)
        progress = Progress(wal_id=wal_id, wal_offset=end, last_command_id=newest)
        return replace(self, progress=progress, replicated=max(self.replicated, end))

    def _acknowledged(self, request: PreparedRequest, outcome: Appended) -> tuple[Journaled, ...]:
        """The entries that an acknowledgement says were journaled, none of them in the window."""
        first = outcome.first_command_id
        earlier = [each for each in outcome.duplicates if each.command_id < (first or NO_LIMIT)]
        known = {each.request_uuid: each.command_id for each in earlier}
        entries = list(new_entries(request, known))
        last = None if first is None else first + len(entries) - 1
        assert (first is None, outcome.last_command_id) == (not entries, last)
        assert outcome.count == len(entries) + len(outcome.duplicates)
        added = tuple(
            Journaled((first or 0) + number, uuid, content, outcome.wal_offset)
            for number, (uuid, content) in enumerate(entries)
        )
        ids = self.ids | {each.request_uuid: each.command_id for each in added}
        assert all(ids[each.request_uuid] == each.command_id for each in outcome.duplicates)
        window = {each.request_uuid for each in self.settled[-DEDUP_WINDOW:]}
        assert window.isdisjoint(each.request_uuid for each in added)
        return added


def new_entries(
    request: PreparedRequest, known: dict[UUID, int]
) -> Iterator[tuple[UUID, dict[str, Any]]]:
    """The entries that a request adds to a log."""
    seen = set(known)
    contents = msgpack.Unpacker(BytesIO(request.packed), strict_map_key=False)
    for content in contents:
        uuid = UUID(bytes=content["request_uuid"])
        if uuid not in seen:
            seen.add(uuid)
            yield uuid, content


def open_strictly(
    files: SimulatedFiles, world: World, *, reachable: bool
) -> tuple[OpenedLog, bool]:
    """Open the log as the service does; `tolerant` where a strict start asks for a repair.

    Returns whether it did. A refusal must not have changed anything.
    """
    held = EnvironmentSummary(progress=world.progress)
    syncer = FdatasyncSyncer(files)
    lock_wal(files, SETTINGS)
    before = files.disk
    try:
        return open_log(files, SETTINGS, syncer, held if reachable else None, lambda: 1), False
    except StartRefused as refusal:
        assert files.disk == before
        reason = str(refusal)
    if not reachable and "start again with Postgres up" in reason:
        assert not world.settled, "what was acknowledged needs no Postgres"
        return open_strictly(files, world, reachable=True)
    assert "`journal wal repair` can cut it" in reason, reason
    tolerant = SETTINGS.model_copy(update={"wal_tail": WalTail.TOLERANT})
    return open_log(files, tolerant, syncer, held if reachable else None, lambda: 1), True


def recovered(disk: Disk, opened: OpenedLog, world: World, *, reachable: bool) -> World:
    """Invariant I, asserted of a log that was opened; returns the world as it goes on from there.

    Every settled entry is there once, in order, with its content, unless Postgres has it and the
    log gave it back. Of the waiting requests a first part may be there, each whole.
    """
    kept_from = opened.checkpoint.retained_offset
    assert kept_from <= world.replicated, "more was given back than Postgres ever had"
    found, end = _journaled(disk, kept_from)
    assert opened.log.end == end
    expected = [each for each in world.settled if each.end > kept_from]
    assert found[: len(expected)] == expected
    settled = world.settled + tuple(_match_waiting(found[len(expected) :], world))
    assert opened.next_command_id > max((each.command_id for each in settled), default=0)
    _check_index(opened, settled)
    if reachable and world.progress is not None:
        assert opened.checkpoint.wal_offset == world.progress.wal_offset
    assert opened.checkpoint.wal_offset <= opened.log.end
    return replace(world, settled=settled, waiting=())


def _journaled(disk: Disk, kept_from: int) -> tuple[list[Journaled], int]:
    """The entries of a log, and where it ends."""
    contents = disk.contents(SETTINGS.wal_dir)
    segments = [(Path(name), data) for name, data in contents.items() if name.endswith(".wal")]
    found, end = [], 0
    for record in read_segments(segments, kept_from):
        end = record.end
        for number, content in enumerate(record.content.get("commands", [])):
            command_id = record.content["first_command_id"] + number
            uuid = UUID(bytes=content["request_uuid"])
            found.append(Journaled(command_id, uuid, content, end))
    return found, end


def _match_waiting(found: list[Journaled], world: World) -> list[Journaled]:
    """What lies behind all that is settled: waiting requests, whole and in their order."""
    rest, ids = found, world.ids
    for request in world.waiting:
        added = list(new_entries(request, ids))
        part, rest = rest[: len(added)], rest[len(added) :]
        if not part:
            continue
        assert [(each.request_uuid, each.content) for each in part] == added
        first = part[0].command_id
        assert [each.command_id for each in part] == list(range(first, first + len(part)))
        assert first > max(ids.values(), default=0)
        ids |= {each.request_uuid: each.command_id for each in part}
    assert not rest, "nobody sent this"
    return found


def _check_index(opened: OpenedLog, settled: Sequence[Journaled]) -> None:
    """The duplicate index covers the newest entries, with Postgres down too."""
    newest = {each.request_uuid: each.command_id for each in settled}
    for each in settled[-DEDUP_WINDOW:]:
        assert opened.index.get(each.request_uuid.int) == newest[each.request_uuid]


class Died(Exception):
    """The writer has given up: the process would be gone now."""


class Life:
    """One run of the journal, from opening its log on."""

    def __init__(
        self,
        files: SimulatedFiles,
        world: World,
        *,
        reachable: bool = True,
        on_world: Callable[[World], None] = lambda world: None,
    ) -> None:
        self.files = files
        self._on_world = on_world
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.opened, self.was_refused = open_strictly(files, world, reachable=reachable)
        self.world = recovered(files.disk, self.opened, world, reachable=reachable)
        on_world(self.world)
        self.writer: WalWriter[Any] = WalWriter(
            self.opened.log,
            self.opened.index,
            next_command_id=self.opened.next_command_id,
            max_batch_entries=1000,
            max_batch_bytes=NO_LIMIT,
            queue_entries=1000,
            queue_bytes=NO_LIMIT,
            deliver=self._deliver,
            on_fatal=self._ended.put,
        )
        self.writer.start()

    def append(self, *requests: PreparedRequest) -> None:
        """Send requests that share one pass of the writer. Raises `Died`."""
        *before, last = requests
        with self._held() if before else nullcontext():
            self._know(self.world.sent(requests))
            for request in before:
                self.writer.submit(request, lambda outcome: None)
            self.writer.submit(last, lambda outcome: self._ended.put(None))
        fatal = self._ended.get(timeout=LIMIT_S)
        if fatal is not None:
            raise Died from fatal

    def replicate(self, end: int) -> None:
        """Postgres commits what ends at or before `end`, or goes back to there."""
        self._know(self.world.replicated_up_to(end, self.opened.log.wal_id))

    def end(self) -> None:
        self.writer.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the writer from taking what is submitted, until all of it waits."""
        arrived, released = Event(), Event()

        def wait(_: Outcome) -> None:
            arrived.set()
            assert released.wait(LIMIT_S)

        self.writer.barrier(wait)
        assert arrived.wait(LIMIT_S)
        yield
        released.set()

    def _deliver(self, committed: Committed) -> None:
        for submission, outcome in committed.outcomes:
            if submission.request is not None:
                self._know(self.world.answered(submission.request, outcome))
            submission.deliver(outcome)

    def _know(self, world: World) -> None:
        self.world = world
        self._on_world(world)
