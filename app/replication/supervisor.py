"""Keeps the replication process alive from within the worker, and passes its reports on."""

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Final

from app.replication.handover import ReplicationSettings
from app.replication.link import DOWN, Drain, Durable, Progressed, Status, WorkerEnd, socket_pair
from app.tasks import start_lasting

_log = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_KILL_AFTER_S: Final = 2.0
# Each message wakes the other process: one for every record would cost more than the record.
_TELL_EVERY_S: Final = 0.005


class ReplicationSupervisor:
    """Starts the replication process, restarts it with back-off when it dies, drains it at the end.

    Called on the loop: `on_progress` for every transaction that Postgres has committed, `on_error`
    for every failure that was reported, `on_death` when the process died.
    """

    def __init__(
        self,
        wal_id: str,
        durable_offset: int,
        settings: ReplicationSettings,
        on_progress: Callable[[Progressed], None],
        on_error: Callable[[], None],
        on_death: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.status = Status(DOWN, "replication is starting")
        self._wal_id = wal_id
        self._durable = durable_offset
        self._told = 0
        self._teller: asyncio.TimerHandle | None = None
        self._settings = settings
        self._on_progress = on_progress
        self._on_error = on_error
        self._on_death = on_death
        self._on_fatal = on_fatal
        self._end: WorkerEnd | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._draining = False
        self._drain_told = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the process, and the task that watches over it."""
        self._task = start_lasting(self._watch(), "replication-supervisor", self._on_fatal)

    @property
    def pid(self) -> int | None:
        """The process id, while the process runs."""
        return None if self._process is None else self._process.pid

    def publish(self, offset: int) -> None:
        """Tell the process how far the log is durable, a few milliseconds later.

        Never waits; what can't be told then is told later still.
        """
        self._durable = offset
        if self._teller is None:
            self._teller = asyncio.get_running_loop().call_later(_TELL_EVERY_S, self._tell)

    async def drain(self, timeout_s: float) -> bool:
        """Let the process replicate what is durable and end.

        False when it did not in time and was killed.
        """
        if self._task is None or self._task.done():
            return True
        self._draining = True
        self._tell()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._task)
                return True
        self._task.cancel()  # kills the process
        await asyncio.wait([self._task])
        return False

    def _tell(self) -> None:
        if self._teller is not None:
            self._teller.cancel()
            self._teller = None
        end = self._end
        if end is None:
            return
        if self._told < self._durable and end.try_send(Durable(self._durable)):
            self._told = self._durable
        if self._draining and not self._drain_told and self._told == self._durable:
            self._drain_told = end.try_send(Drain())

    async def _watch(self) -> None:
        delay_s = _FIRST_DELAY_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                code = await self._run_once()
            except OSError as error:  # no process or descriptor to be had: try again later
                _log.error("the replication process can't be started: %s", error)
                code = None
            if self._draining and code == 0:
                return
            self._on_death()
            if loop.time() - started > _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            self._change(Status(DOWN, f"the replication process ended with status {code}"))
            _log.error(
                "the replication process ended with status %s; restarting in %.1f s", code, delay_s
            )
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    async def _start_process(self, link: socket.socket) -> asyncio.subprocess.Process:
        descriptor = link.fileno()
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.replication.process", str(descriptor), self._wal_id),
            env=self._settings.put_into(os.environ),
            pass_fds=(descriptor,),
            stdin=asyncio.subprocess.DEVNULL,
            # Ctrl-C at a terminal is for the service, which lets this process finish first.
            start_new_session=True,
        )

    async def _run_once(self) -> int | None:
        """Start the process and listen to it; its exit status, None when it did not start."""
        ours, theirs = socket_pair()
        with theirs:
            try:
                self._process = await self._start_process(theirs)
            except OSError as error:
                ours.close()
                _log.error("the replication process can't be started: %s", error)
                return None
        self._end = WorkerEnd(ours)
        self._told, self._drain_told = 0, False
        _log.info("the replication process runs with pid %d", self._process.pid)
        try:
            # An offset of 0 is news as well: the process waits for the first message.
            self._end.try_send(Durable(self._durable))
            self._told = self._durable
            self._tell()
            while (message := await self._end.receive()) is not None:
                if isinstance(message, Progressed):
                    self._on_progress(message)
                else:
                    self._change(message)
                self._tell()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _KILL_AFTER_S)
        finally:
            self._end.close()
            self._end = None
            process, self._process = self._process, None
            await _kill(process)
        return process.returncode

    def _change(self, status: Status) -> None:
        self.status = status
        if status.detail:
            self._on_error()


async def _kill(process: asyncio.subprocess.Process | None) -> None:
    if process is None or process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _KILL_AFTER_S)
