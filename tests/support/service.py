"""The real service as a process of its own, on loopback, on a port the system picks."""

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import psutil

from tests.support.ends import await_ends
from tests.support.loaded import Attach, LoadedService
from tests.support.waiting import wait_for

_COMMAND: Final = "from app.cli import main; main()"
# Without the compiled hashing, as where the extra `bulk` is not installed: to load it takes longer
# than most of what is done with it here.
_SERVE: Final = f"import sys; sys.modules['numba'] = None; {_COMMAND}"
_REPLICATION: Final = "app.replication.process"


class Service:
    """`journal serve` on a data directory; it can be killed and started again on the same port.

    `settings` are `JOURNAL_` variables without the prefix. Whatever is still running at the end of
    the `with` block is killed, by process id.
    """

    start_timeout_s = 60.0

    def __init__(self, data_dir: Path, database_url: str, **settings: object) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir.with_name(data_dir.name + ".log")
        self.port = 0
        # What others than the service read from its environment, such as libpq's PGPASSWORD.
        self.variables: dict[str, str] = {}
        # A command that runs the service as its own process. What is read as the program is
        # loaded, from the environment, has to come with one.
        self.wrapper: tuple[str, ...] = ()
        # What traces the service from its start on, where it is started without a command.
        self.attach: Attach | None = None
        # What to ask with whether it is ready, where it wants certificates of its clients.
        self.tls: ssl.SSLContext | bool = False
        self._settings: Mapping[str, object] = {
            "DATA_DIR": data_dir,
            "DATABASE_URL": database_url,
            "AUTO_MIGRATE": "true",
            "LOG_FORMAT": "text",
            # Attackers and others have one address here.
            "FLOOD_BAN_S": 0,
            **settings,
        }
        self._process: subprocess.Popen[bytes] | LoadedService | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    @property
    def url(self) -> str:
        """Where it listens."""
        scheme = "https" if "TLS_CERT" in self._settings else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        """The process that owns the log."""
        return wait_for(lambda: _listening_child(self.pid), "the worker runs")

    @property
    def replication_pid(self) -> int:
        """The process that fills Postgres."""
        return wait_for(lambda: _descendant(self.pid, _REPLICATION), "the replication process runs")

    @property
    def log(self) -> str:
        """All that it has logged, over all its lives."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def launch(self, **settings: object) -> subprocess.Popen[bytes] | LoadedService:
        """Start the process and return at once; `settings` hold for this life."""
        environ = self._environ({"PORT": self.port, **settings})
        if not self.wrapper:
            self._process = LoadedService(environ, self.log_path, self.attach)
            return self._process
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-c", _SERVE, "serve"],
                env=environ,
                stderr=log,
                stdout=log,
            )
        return self._process

    def start(self, **settings: object) -> Self:
        """Start the process and wait until it is ready."""
        self.launch(**settings)
        self._wait_for(self._is_ready, "the service is ready")
        return self

    def starts(self) -> bool:
        """Start the process; whether it becomes ready, rather than ending by itself."""
        process = self.launch()
        self._wait_for(lambda: process.poll() is not None or self._answers(), "it starts or ends")
        return process.poll() is None

    def start_unready(self) -> Self:
        """Start the process and wait until it answers that it is not ready, or not yet."""
        self.launch()
        self._wait_for(lambda: self._readiness() == 503, "the service answers")
        return self

    def start_refused(self, **settings: object) -> tuple[int, str]:
        """Start a process that should end by itself; returns its status and this life's log."""
        before = len(self.log)
        status = self.launch(**settings).wait(60)
        return status, self.log[before:]

    def terminate(self, timeout_s: float = 60) -> int:
        """SIGTERM; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL every process of the service at once, as a power cut would."""
        assert self._process is not None
        family = _family(self._process.pid)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(30)
        await_ends(family)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `journal` command with the settings of the service."""
        return subprocess.run(
            [sys.executable, "-c", _COMMAND, *arguments],
            env=self._environ({}),
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the process to end by itself; returns the exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def client(self, **options: Any) -> httpx.Client:
        """A synchronous client of the service; HTTP/2 alone where `http2=True`."""
        options.setdefault("http1", not options.get("http2", False))
        if "TLS_CERT" not in self._settings:
            # Or each client would read all certificates that are trusted.
            options["verify"] = False
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def _wait_for(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_for(condition, what, self.start_timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; port {self.port}, its log:\n{self.log}") from error

    def _environ(self, settings: Mapping[str, object]) -> dict[str, str]:
        environ = {
            name: text for name, text in os.environ.items() if not name.startswith("JOURNAL_")
        }
        for name, value in {**self._settings, **settings}.items():
            environ[f"JOURNAL_{name}"] = str(value)
        return environ | self.variables

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the service ended with {self._process.returncode}:\n{self.log}")
        return self._answers()

    def _answers(self) -> bool:
        return self._readiness() == 200

    def _readiness(self) -> int | None:
        """The status of `/readyz`; None while nobody answers."""
        assert self._process is not None
        if not self.port:
            self.port = _listening_port(self._process.pid)
            if not self.port:
                return None
        try:
            with self.client(verify=self.tls) as client:
                return client.get("/readyz").status_code
        except httpx.TransportError:
            return None


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _listening_port(pid: int) -> int:
    """The worker's: its supervisor only tries, for a moment, whether it could listen."""
    for process in _family(pid)[1:]:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return int(connection.laddr.port)
        except psutil.Error:
            continue
    return 0


def _listening_child(pid: int) -> int | None:
    for process in psutil.Process(pid).children():
        try:
            if process.net_connections("tcp"):
                return process.pid
        except psutil.Error:
            continue
    return None


def _descendant(pid: int, module: str) -> int | None:
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if module in process.cmdline():
                return process.pid
        except psutil.Error:
            continue
    return None
