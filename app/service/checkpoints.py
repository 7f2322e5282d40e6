"""Keeping the checkpoint.

It follows the progress of replication, and the log is given back behind it.

Order (protocol, section 5): Postgres has committed; the commitment store is synced, the checkpoint
replaced and synced; then segments are unlinked and punched, up to a limit that the checkpoint on
disk already names.

A checkpoint that can't be written is written again, from the start and into a new file: no failed
sync is asked a second time. That of its directory would be, and a success could be no more than the
kernel's forgetting. It ends the service, as a failed sync of the log does, before anything is given
back on the strength of it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

from msgspec.structs import replace

from app import failpoints
from app.errors import CorruptionError, DiskFull
from app.replication.link import Progressed
from app.tasks import start_lasting
from app.wal.checkpoint import Checkpoint, write_checkpoint
from app.wal.files import FileSystem
from app.wal.log import NO_ROOM
from app.wal.reserve import Reserve
from app.wal.retention import give_back

_log = logging.getLogger(__name__)

T = TypeVar("T")
Args = TypeVarTuple("Args")

_PAUSE_S: Final = 0.1
_RETRY_S: Final = 1.0
# Giving back less than this at a time costs more than it brings.
_STEP_BYTES: Final = 1 << 20


class CheckpointKeeper:
    """Owns `checkpoint.json`.

    `current` is what is on disk, or where recovery found things at start.

    `keep_from` gives the lowest offset that is needed for other reasons than replication;
    `sync_commitments` makes the commitment store durable and gives the offset it then reaches;
    `reserve` is room for all this on a full volume. `on_fatal` is called when a sync has failed
    after which nothing may be given back: it must not return to anything that acknowledges.
    """

    def __init__(
        self,
        files: FileSystem,
        path: Path,
        wal_dir: Path,
        start: Checkpoint,
        keep_from: Callable[[], int],
        on_given_back: Callable[[int], None],
        sync_commitments: Callable[[], int] | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        self.current = start
        self._files = files
        self._path = path
        self._wal_dir = wal_dir
        self._keep_from = keep_from
        self._sync_commitments = sync_commitments
        self._on_fatal = on_fatal
        self._reserve = reserve
        self._on_given_back = on_given_back
        self._wanted = start
        self._given_back = start.retained_offset
        # Ends of records behind which the log may be given back, some way apart from each other.
        self._boundaries = deque([start.wal_offset])
        self._moved = asyncio.Event()
        self._urgent = asyncio.Event()
        self._written = asyncio.Condition()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        # One thing after the other, and waiting for nobody else's.
        self._thread = ThreadPoolExecutor(1, "checkpoint")

    def start(self) -> None:
        """Start the task that writes."""
        # Without it the log would only grow.
        self._task = start_lasting(self._run(), "checkpoint-keeper", self._fail)

    def progressed(self, progress: Progressed) -> None:
        """Replication is at another place now; an earlier one, after a restored backup."""
        if progress.wal_offset < self._wanted.wal_offset:
            _log.warning(
                "the checkpoint goes back from %d to %d, where Postgres is",
                self._wanted.wal_offset,
                progress.wal_offset,
            )
            self._boundaries.clear()
        self._wanted = replace(
            self._wanted,
            wal_offset=progress.wal_offset,
            last_command_id=progress.last_command_id,
            last_l2_seq=progress.last_l2_seq,
        )
        if not self._boundaries or progress.wal_offset - self._boundaries[-1] >= _STEP_BYTES:
            self._boundaries.append(progress.wal_offset)
        self._moved.set()

    async def wait_until(self, offset: int) -> Checkpoint:
        """Wait until the checkpoint on disk has reached `offset`, with Postgres not gone back."""
        async with self._written:
            while min(self.current.wal_offset, self._wanted.wal_offset) < offset:
                self._urgent.set()
                await self._written.wait()
        return self.current

    async def stop(self) -> None:
        """Write what is still to be written, and end."""
        if self._task is None:
            return
        self._stopping = True
        self._moved.set()
        self._urgent.set()
        try:
            await self._task
        finally:
            self._thread.shutdown()

    def _fail(self, error: BaseException) -> None:
        if self._on_fatal is not None:
            self._on_fatal(error)

    async def _run(self) -> None:
        if not await self._keep_reserve():
            self._moved.set()  # no entries are taken meanwhile: nothing else would begin a try
        while not self._stopping:
            await self._moved.wait()
            self._moved.clear()
            if not await self._write():
                self._moved.set()
                await asyncio.sleep(_RETRY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._urgent.wait()
            self._urgent.clear()
        await self._write()

    async def _write(self) -> bool:
        """Write the checkpoint if it has moved, and give back behind it.

        False when something of it is to be tried again.
        """
        retained = self._retain(self._wanted)
        durable = retained <= self.current.retained_offset or await self._sync_up_to(retained)
        if not durable:
            retained = self.current.retained_offset
        wanted = replace(self._wanted, retained_offset=retained)
        if wanted != self.current or not self._files.exists(self._path):
            try:
                await self._with_room(write_checkpoint, self._files, self._path, wanted)
            except OSError as error:
                _log.error("can't write %s, trying again: %s", self._path, error)
                return False
            self.current = wanted
        async with self._written:
            self._written.notify_all()
        if self._given_back < wanted.retained_offset:
            failpoints.reach(failpoints.CHECKPOINT_WRITTEN)
            await self._give_back(wanted.retained_offset)
        return durable and await self._keep_reserve()

    async def _sync_up_to(self, retained: int) -> bool:
        """Let the commitment store need no log before `retained`; False when that can't be now.

        What the store has not made durable itself can only be derived again from the log.
        """
        if self._sync_commitments is None:
            return True
        try:
            return retained <= await self._with_room(self._sync_commitments)
        except DiskFull as error:
            _log.error("can't sync the commitment store, trying again: %s", error)
            return False

    async def _with_room(self, work: Callable[[*Args], T], *arguments: *Args) -> T:
        """Do what must be done even when the volume is full: the reserve is for that."""
        try:
            return await self._in_thread(work, *arguments)
        except (DiskFull, OSError) as error:
            full = isinstance(error, DiskFull) or error.errno in NO_ROOM
            if not (full and self._reserve and await self._in_thread(self._reserve.release)):
                raise
            _log.warning("the volume is full: the reserve is used, and no entries are taken")
            return await self._in_thread(work, *arguments)

    async def _in_thread(self, work: Callable[[*Args], T], *arguments: *Args) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _keep_reserve(self) -> bool:
        return self._reserve is None or await self._in_thread(self._reserve.keep)

    def _retain(self, wanted: Checkpoint) -> int:
        """From where on the log is to be kept: never back, and only in steps worth their while."""
        limit = min(wanted.wal_offset, self._keep_from())
        kept = self.current.retained_offset
        boundaries = self._boundaries
        while len(boundaries) > 1 and boundaries[1] <= limit:
            boundaries.popleft()
        if boundaries and boundaries[0] <= limit and boundaries[0] - kept >= _STEP_BYTES:
            return boundaries[0]
        return kept

    async def _give_back(self, limit: int) -> None:
        try:
            given_back = await self._in_thread(
                give_back, self._files, self._wal_dir, self._given_back, limit
            )
        except (OSError, CorruptionError) as error:
            _log.error("can't give the log back up to %d, trying again later: %s", limit, error)
            return
        self._given_back = limit
        self._on_given_back(given_back)
