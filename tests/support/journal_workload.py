"""A busy life of the journal: appends, duplicates, replication, giving back, and faults."""

import asyncio
import errno
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple
from uuid import UUID

from app.model.codec import PreparedRequest
from app.model.entry import Entry
from app.replication.link import Progressed
from app.service.checkpoints import CheckpointKeeper
from tests.support.faulty_files import Call, ShortWrite, os_error
from tests.support.journal_entries import make_entry
from tests.support.journal_life import SETTINGS, Died, Life
from tests.support.journal_world import DEDUP_WINDOW, World
from tests.support.running_writer import request
from tests.support.simulated_files import CrashingFiles
from tests.support.simulated_machine import Machine

LARGEST_BYTES: Final = 2500
# Calls that must succeed, and what is in the names of their files.
_BREAKING: Final = (
    *[("sync", ".wal")] * 5,
    ("sync", ".tmp"),
    ("write", ".wal"),
    ("write", ".tmp"),
    ("sync directory", ""),
)


class Moment(NamedTuple):
    """A place between two calls: what a killed process leaves, what is known outside."""

    call: Call
    machine: Machine
    world: World


class Workload:
    """Records the `moments` of one life, which begins on `machine` as the world knew it then.

    `sent` are the entries of earlier lives, some of which are sent again.
    """

    def __init__(
        self, machine: Machine, world: World, rng: Random, sent: dict[UUID, Entry]
    ) -> None:
        self.moments: list[Moment] = []
        self.sent = sent
        self.rng = rng
        self._machine = machine
        self._world = world
        self._interlude: Callable[[], None] | None = None
        self._calls_until = 0

    def live(self, steps: int) -> None:
        """Open the log and go through some steps; a fault may end it before."""
        life = Life(self._machine, self._world, self.rng, before=self._before)
        try:
            asyncio.run(self._work(life, steps))
        except Died:
            pass
        finally:
            life.end()
        self._before(life, Call("end", ""))

    async def _work(self, life: Life, steps: int) -> None:
        keeper = Keeper(life)
        for _ in range(steps):
            match self.rng.choices(["append", "replicate", "fault"], [9, 5, 2])[0]:
                case "append":
                    life.append(*self._requests(life.world))
                case "replicate":
                    await self._replicate(life, keeper)
                case "fault":
                    self._append_without_room(life)
        match self.rng.choice(["stopped", "killed", "broken", "broken"]):
            case "stopped":
                await keeper.keeper.stop()
            case "broken":
                self._append_on_a_broken_disk(life)

    async def _replicate(self, life: Life, keeper: "Keeper") -> None:
        """Postgres commits, or was restored from an older backup; the checkpoint follows."""
        kept_from = keeper.keeper.current.retained_offset
        progress = life.world.progress
        at = progress.wal_offset if progress else 0
        behind = [end for end in life.world.ends if end > at]
        before = [end for end in life.world.ends if kept_from < end < at]
        if before and self.rng.random() < 0.1:
            end = self.rng.choice(before)
        elif behind:
            end = self.rng.choice(behind)
        else:
            return
        if self.rng.random() < 0.5:
            self._interlude = lambda: life.append(*self._requests(life.world))
            self._calls_until = self.rng.randrange(12)
        refused = self.rng.random()
        if refused < 0.2:
            refuse_once(life.files, "punch", errno.EOPNOTSUPP)
        elif refused < 0.4:
            refuse_once(
                life.files, self.rng.choice(["create", "write", "sync"]), errno.ENOSPC, ".json"
            )
        await keeper.follow(end)
        self._interlude = None
        life.files.fault = lambda call: None

    def _append_without_room(self, life: Life) -> None:
        """The disk is full in the middle of a record, or at the beginning of a segment."""
        requests = self._requests(life.world)
        if self.rng.random() < 0.5:
            refuse_once(life.files, "write", errno.ENOSPC, ".wal", self.rng.random())
        else:
            refuse_once(
                life.files, self.rng.choice(["create", "write", "sync"]), errno.ENOSPC, ".tmp"
            )
        settled = life.world.settled
        life.append(*requests)
        life.files.fault = lambda call: None
        if life.world.settled == settled and self.rng.random() < 0.5:
            life.append(*requests)

    def _append_on_a_broken_disk(self, life: Life) -> None:
        """An I/O error: the process ends, and with it this life."""
        operation, part = self.rng.choice(_BREAKING)
        refuse_once(life.files, operation, errno.EIO, part, self.rng.random())
        life.append(*self._requests(life.world))
        life.files.fault = lambda call: None

    def _requests(self, world: World) -> list[PreparedRequest]:
        """One to three requests; some repeat what was sent before, or what they hold themselves."""
        requests: list[PreparedRequest] = []
        newest = [each.request_uuid for each in world.settled[-DEDUP_WINDOW:]]
        known = [uuid for uuid in newest if uuid in self.sent]
        for _ in range(self.rng.choice([1, 1, 1, 2, 3])):
            entries = [self._entry() for _ in range(self.rng.choice([1, 1, 2, 3]))]
            if known and self.rng.random() < 0.3:
                entries.insert(self.rng.randrange(2), self.sent[self.rng.choice(known)])
            if requests and self.rng.random() < 0.3:
                entries.append(self.rng.choice(requests[-1].entries))
            if self.rng.random() < 0.1:
                entries.append(entries[0])
            requests.append(request(*entries))
        return requests

    def _entry(self) -> Entry:
        size = 1 + int(self.rng.random() ** 3 * LARGEST_BYTES)
        uuid = UUID(int=self.rng.getrandbits(128))
        command_type = self.rng.choice([None, "TickSnapshot"])
        entry = make_entry(
            request_uuid=uuid, command_data=self.rng.randbytes(size), command_type=command_type
        )
        self.sent[uuid] = entry
        return entry

    def _before(self, life: Life, call: Call) -> None:
        self.moments.append(Moment(call, life.machine, life.world))
        if self._interlude is not None:
            self._calls_until -= 1
            # While names are changed, an append may have to wait for who changes them.
            if self._calls_until < 0 and not life.files.naming.locked():
                interlude, self._interlude = self._interlude, None
                interlude()


class Keeper:
    """The checkpoint's keeper of a life, followed step by step."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._times_given_back = 0
        self._failures: list[BaseException] = []
        self.keeper = CheckpointKeeper(
            life.files,
            SETTINGS.checkpoint_path,
            SETTINGS.wal_dir,
            life.opened.checkpoint,
            self._keep_from,
            lambda given_back: self._count(),
            None if life.blocks is None else life.blocks.sync,
            self._failures.append,
        )
        life.opened.log.kept_from = lambda: self.keeper.current.retained_offset
        self.keeper.start()

    async def follow(self, end: int) -> None:
        """Postgres is at `end` now; returns once nothing is left to do."""
        kept_from, times = self.keeper.current.retained_offset, self._times_given_back
        self._life.replicate(end)
        progress = self._life.world.progress
        assert progress is not None
        self.keeper.progressed(
            Progressed(
                wal_offset=end,
                last_command_id=progress.last_command_id,
                last_l2_seq=None,
                dead_letters=0,
            )
        )
        async with asyncio.timeout(30):
            # It tells nobody when it goes back.
            while self.keeper.current.wal_offset != end or (
                kept_from < self.keeper.current.retained_offset and times == self._times_given_back
            ):
                if self._failures:
                    raise self._failures[0]
                await asyncio.sleep(0)

    def _keep_from(self) -> int:
        opened = self._life.opened
        start = opened.index.start_offset
        return opened.log.end if start is None else start

    def _count(self) -> None:
        self._times_given_back += 1


def refuse_once(
    files: CrashingFiles, operation: str, code: int, part: str = "", written: float = 0
) -> None:
    """Let the next call fail whose operation it is, and whose file's name has the part.

    `written` is the share of a write that is still done.
    """

    def fault(call: Call) -> Exception | None:
        if call.operation != operation or part not in call.name:
            return None
        files.fault = lambda call: None
        if operation == "write":
            return ShortWrite(code, int(written * call.length))
        return os_error(code)

    files.fault = fault
