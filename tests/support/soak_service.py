"""The soak's cast: a service on its own Postgres, clients as processes, one who follows blocks.

Every process of it can be killed by itself.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Final, NamedTuple, Self

import httpx
import psutil

from app.embedded import START_TIMEOUT_S
from app.replication.handover import ReplicationSettings
from tests.support.ends import await_ends
from tests.support.service import Service
from tests.support.soak_client import read_ledger
from tests.support.waiting import wait_for

_ROOT: Final = Path(__file__).parents[2]


class Usage(NamedTuple):
    """What the processes of a service hold."""

    memory_bytes: int
    descriptors: int


class Clients:
    """Clients that run until they are killed or stopped; each has a ledger that stays."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory, self._seed = directory, seed
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()

    def ledger(self, name: str) -> Path:
        """Where a client says what it does."""
        return self._directory / f"{name}.ledger"

    def start(self, url: str) -> None:
        """Start a further one."""
        name = f"client{len(self.names)}"
        self.names.append(name)
        module = ("-m", "tests.support.soak_client")
        arguments = (url, str(self.ledger(name)), str(self._seed), name)
        with (self._directory / "clients.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *module, *arguments], cwd=_ROOT, stderr=log, stdout=log
            )

    def kill(self, number: int) -> None:
        """Kill the client that is `number`th by age of those that run, in whatever it does."""
        name = list(self._running)[number % len(self._running)]
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Let every one see its request through, and end."""
        for name, process in self._running.items():
            wait_for(self.ledger(name).exists, f"{name} runs")
            process.terminate()
        for name, process in self._running.items():
            assert process.wait(60) == 0, self.ledger(name).read_text()[-1000:]
        self._running.clear()

    def acknowledged(self) -> int:
        """How many requests have been acknowledged; fails when a client found a fault."""
        for name, process in self._running.items():
            assert process.poll() is None, (
                name,
                self.ledger(name).read_text()[-1000:],
                (self._directory / "clients.log").read_text()[-3000:],
            )
        ledgers = (self.ledger(name) for name in self.names)
        return sum(path.read_bytes().count(b"acked") for path in ledgers if path.exists())

    def sent(self) -> dict[str, list[tuple[int, int, list[int]]]]:
        """All requests of all clients, in order."""
        return {name: list(read_ledger(self.ledger(name))) for name in self.names}


class BlockFollower(Thread):
    """Follows `/blocks/stream` through every life of the service; blocks never change."""

    def __init__(self, service: Service) -> None:
        super().__init__(name="block-follower", daemon=True)
        self._service = service
        self._stopping = Event()
        self.hashes: list[str] = []
        self.fault = ""

    def run(self) -> None:
        while not self._stopping.is_set() and not self.fault:
            try:
                self._follow()
            except httpx.TransportError:
                self._stopping.wait(0.1)

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)
        assert not self.fault, self.fault

    def _follow(self) -> None:
        seen = {"Last-Event-ID": str(len(self.hashes) - 1)} if self.hashes else {}
        with (
            self._service.client() as client,
            client.stream("GET", "/blocks/stream", headers=seen) as response,
        ):
            if response.status_code != 200:
                self._stopping.wait(0.1)
                return
            for line in response.iter_lines():
                if self._stopping.is_set():
                    return
                if line.startswith("data: "):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, block: dict[str, object]) -> None:
        height = len(self.hashes)
        before = self.hashes[-1] if self.hashes else "0x" + "00" * 32
        if block["batch_seq"] != height or block["prev_block_hash"] != before:
            self.fault = f"behind block {height - 1}, {before}, came {block}"
        self.hashes.append(str(block["block_hash"]))


class SoakService(Service):
    """A service whose every process can be killed by itself. `url` of its Postgres is learnt."""

    # The keeper before has 60 s to stop a server that it was just starting again.
    start_timeout_s = START_TIMEOUT_S + 10

    def __init__(self, data_dir: Path, **settings: object) -> None:
        super().__init__(data_dir, "embedded", **settings)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.kill_postgres()  # whose keeper may be gone

    @property
    def database_url(self) -> str:
        """Where its embedded Postgres listens, as its replication process was told."""
        environ = psutil.Process(self.replication_pid).environ()
        return ReplicationSettings.taken_from(environ).database_url

    @property
    def keeper_pid(self) -> int:
        """The process that watches over the embedded server."""
        return wait_for(self._find_keeper, "the keeper runs")

    def usage(self) -> dict[str, Usage]:
        """What each of its processes holds, Postgres left out."""
        family = {
            "supervisor": self.pid,
            "worker": self.worker_pid,
            "replication": self.replication_pid,
            "keeper": self.keeper_pid,
        }
        return {name: _usage_of(psutil.Process(pid)) for name, pid in family.items()}

    def kill_supervisor(self) -> None:
        worker = psutil.Process(self.worker_pid)
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        await_ends([worker], 60)  # it drains first

    def kill_worker(self) -> None:
        os.kill(self.worker_pid, signal.SIGKILL)
        assert self.wait() != 0, "a service without its worker is no success"

    # Whom to kill may just have died, or be started again: these say whether anyone was killed.

    def kill_replication(self) -> bool:
        """Kill the process that fills Postgres."""
        with suppress(ProcessLookupError):
            os.kill(self.replication_pid, signal.SIGKILL)
            return True
        return False

    def kill_backend(self) -> bool:
        """Kill a backend that serves a connection; Postgres then ends all of them, and recovers."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            for process in self._postmaster().children():
                if "[local]" in " ".join(process.cmdline()):
                    process.kill()
                    return True
        return False

    def kill_postgres(self) -> bool:
        """Kill the embedded server itself; its keeper, if that lives, starts it again."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            self._postmaster().kill()
            return True
        return False

    def kill_keeper(self) -> bool:
        """Kill the process that watches over the embedded server."""
        keeper = self._find_keeper()
        with suppress(ProcessLookupError):
            if keeper is not None:
                os.kill(keeper, signal.SIGKILL)
                return True
        return False

    def _find_keeper(self) -> int | None:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.worker_pid).children():
                with suppress(psutil.ZombieProcess):
                    if "app.embedded" in process.cmdline():
                        return process.pid
        return None

    def _postmaster(self) -> psutil.Process:
        pid_file = self.data_dir / "postgres" / "postmaster.pid"
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        if str(self.data_dir) not in " ".join(process.cmdline()):
            raise psutil.NoSuchProcess(process.pid)  # another one by now
        return process


def _usage_of(process: psutil.Process) -> Usage:
    return Usage(process.memory_info().rss, process.num_fds())


def await_requests(clients: Clients, count: int) -> None:
    """Wait until so many further requests have been acknowledged: the service is alive."""
    goal = clients.acknowledged() + count
    wait_for(lambda: clients.acknowledged() >= goal, f"{count} acknowledgements", 60, 0.05)
