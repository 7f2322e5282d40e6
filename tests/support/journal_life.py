"""The journal's own parts on a simulated machine, held to what the world outside knows.

Here is no rule of the product's: `recovered` compares what was acknowledged and replicated with
what an independent reader finds in the log.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from random import Random
from threading import Event
from typing import Any, Final
from uuid import UUID

from app.chain.store import CommitmentStore
from app.errors import StartRefused
from app.model.codec import PreparedRequest
from app.replication.reader import EnvironmentSummary
from app.service.block_recovery import check_reaches
from app.service.blocks import BlockProducer
from app.service.opening import OpenedLog, lock_wal, open_log
from app.settings import Settings, WalTail
from app.wal.sync import FdatasyncSyncer
from app.wal.writer import Committed, Outcome, WalWriter
from tests.support.faulty_files import Call
from tests.support.foreign_wal import read_segments
from tests.support.journal_world import DEDUP_WINDOW, Journaled, World, new_entries
from tests.support.simulated_disk import Disk
from tests.support.simulated_files import CrashingFiles, SimulatedFiles
from tests.support.simulated_machine import Machine, SimulatedRocks, open_store

DATA_DIR: Final = Path("/srv/data")
SEGMENT_BYTES: Final = 4096
NO_LIMIT: Final = 1 << 40
LIMIT_S: Final = 30

# Below what the settings allow: small segments make short logs show what long ones do.
SETTINGS: Final = Settings(
    data_dir=DATA_DIR, environment="test", allow_new_wal=True, dedup_window=DEDUP_WINDOW
).model_copy(update={"wal_segment_bytes": SEGMENT_BYTES})


def open_strictly(
    files: SimulatedFiles,
    store: CommitmentStore | None,
    world: World,
    new_id: Callable[[], str],
    *,
    reachable: bool,
) -> OpenedLog:
    """Open the log as the service does; `tolerant` where a strict start asks for a repair.

    A refusal must not have changed anything.
    """
    held = EnvironmentSummary(progress=world.progress)
    syncer = FdatasyncSyncer(files)
    lock_wal(files, SETTINGS)
    before = files.disk

    def open_with(tail: WalTail) -> OpenedLog:
        settings = SETTINGS.model_copy(update={"wal_tail": tail})
        asked = held if reachable else None
        opened = open_log(files, settings, syncer, asked, lambda: 1, store, new_id)
        if store is not None and not reachable and opened.kept_from is not None:
            check_reaches(store, opened.log.wal_id, opened.kept_from)
        return opened

    try:
        return open_with(WalTail.STRICT)
    except StartRefused as refusal:
        assert files.disk == before
        reason = str(refusal)
    if not reachable and "start again with Postgres up" in reason:
        assert not world.settled, "what was acknowledged needs no Postgres"
        return open_strictly(files, store, world, new_id, reachable=True)
    assert "`journal wal repair` can cut it" in reason, reason
    return open_with(WalTail.TOLERANT)


def recovered(
    disk: Disk, opened: OpenedLog, store: CommitmentStore | None, world: World, *, reachable: bool
) -> World:
    """Invariant I, asserted of a log that was opened; returns the world as it goes on from there.

    Every settled entry is there once, in order, with its content, unless Postgres has it and the
    log gave it back. Of the waiting requests a first part may be there, each whole.
    """
    kept_from = opened.checkpoint.retained_offset
    assert kept_from <= world.replicated, "more was given back than Postgres ever had"
    found, end, newest_height = _journaled(disk, kept_from)
    assert opened.log.end == end
    expected = [each for each in world.settled if each.end > kept_from]
    assert found[: len(expected)] == expected
    settled = world.settled + tuple(_match_waiting(found[len(expected) :], world))
    assert opened.next_command_id > max((each.command_id for each in settled), default=0)
    _check_index(opened, settled)
    if reachable and world.progress is not None:
        assert opened.checkpoint.wal_offset == world.progress.wal_offset
    assert opened.checkpoint.wal_offset <= opened.log.end
    height = max(newest_height, world.height)
    assert store is None or store.state.height == height + 1
    return replace(world, settled=settled, waiting=(), height=height)


def _journaled(disk: Disk, kept_from: int) -> tuple[list[Journaled], int, int]:
    """The entries of a log, where it ends, and the height of its newest block."""
    contents = disk.contents(SETTINGS.wal_dir)
    segments = [(Path(name), data) for name, data in contents.items() if name.endswith(".wal")]
    found, end, height = [], 0, -1
    for record in read_segments(segments, kept_from):
        end = record.end
        if header := record.content.get("header"):
            height = header["batch_seq"]
        for number, content in enumerate(record.content.get("commands", [])):
            command_id = record.content["first_command_id"] + number
            uuid = UUID(bytes=content["request_uuid"])
            found.append(Journaled(command_id, uuid, content, end))
    return found, end, height


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
    """One run of the journal, from opening its log on, which chance names where there is none.

    `before` is told of each call first.
    """

    def __init__(
        self,
        machine: Machine,
        world: World,
        rng: Random,
        *,
        reachable: bool = True,
        before: Callable[["Life", Call], None] = lambda life, call: None,
    ) -> None:
        self.world = world
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.files = CrashingFiles(machine.disk, partial(before, self))
        self._rocks: SimulatedRocks | None = None
        store: CommitmentStore | None = None
        if machine.store is not None:
            self._rocks = SimulatedRocks(machine.store, partial(before, self))
            store = open_store(self._rocks, SETTINGS.environment)
        self.opened = open_strictly(
            self.files, store, world, lambda: rng.randbytes(16).hex(), reachable=reachable
        )
        self._know(recovered(self.files.disk, self.opened, store, world, reachable=reachable))
        self.blocks = None if store is None else self._make_blocks(store)
        self.writer: WalWriter[Any] = WalWriter(
            self.opened.log,
            self.opened.index,
            blocks=self.blocks,
            next_command_id=self.opened.next_command_id,
            max_batch_entries=1000,
            max_batch_bytes=NO_LIMIT,
            queue_entries=1000,
            queue_bytes=NO_LIMIT,
            deliver=self._deliver,
            on_fatal=self._ended.put,
        )
        self.writer.start()

    def _make_blocks(self, store: CommitmentStore) -> BlockProducer:
        log = self.opened.log
        commands = SETTINGS.block_command_types
        return BlockProducer(store, commands, None, log.wal_id, log.end, lambda: store)

    @property
    def machine(self) -> Machine:
        """What is left if the process is killed now."""
        return Machine(self.files.disk, None if self._rocks is None else self._rocks.image)

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
