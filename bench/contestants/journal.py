"""The journal, as users start it: `journal serve` on a fresh data directory.

Unless it is about replication, there is none: the service is pointed at a Postgres that does not
answer, which is a state that it is made for. Its log is then kept whole, and no other process takes
a share of the machine.
"""

import math
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

import psutil

from bench.contestant import Metrics, Round, Row, Server, free_port, put_on, wait_for
from bench.load import Job

# Port 1 is nobody's: each try to connect is refused at once.
NO_POSTGRES: Final = "postgresql://nobody@127.0.0.1:1/nothing"
_REPLICATION: Final = "app.replication.process"
WITHOUT_REPLICATION: Final = {
    "DATABASE_URL": NO_POSTGRES,
    "ALLOW_NEW_WAL": "true",
    # Or stopping would wait for that Postgres.
    "SHUTDOWN_TIMEOUT_S": "0",
}


class Service:
    """`journal serve` on `directory`; `settings` are `JOURNAL_` variables without the prefix."""

    def __init__(self, name: str, settings: Mapping[str, str]) -> None:
        self._server = Server(name)
        self._settings = settings
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def launch(self, scratch: Path) -> None:
        """Start it on the data directory of its name below `scratch`."""
        self.port = free_port()
        settings = {
            "DATA_DIR": str(scratch / self._server.name),
            "PORT": str(self.port),
            "LOG_LEVEL": "warning",
            **self._settings,
        }
        environ = {f"JOURNAL_{name}": text for name, text in settings.items()}
        self._server.start([Path(sys.executable).with_name("journal"), "serve"], scratch, environ)

    def ready(self) -> None:
        """Wait until entries can be acknowledged."""
        wait_for(self._is_ready, f"{self._server.name} is ready")

    def flush(self) -> None:
        """Wait until all that it has acknowledged is replicated."""
        with urlopen(f"{self.url}/flush", data=b"", timeout=600):
            pass

    @property
    def worker(self) -> psutil.Process:
        """The process that owns the log: the one that listens."""
        return self._process(
            lambda process: any(
                connection.laddr.port == self.port for connection in process.net_connections("tcp")
            )
        )

    @property
    def replication(self) -> psutil.Process:
        """The process that fills Postgres."""
        return self._process(lambda process: _REPLICATION in process.cmdline())

    def stop(self) -> None:
        """Stop it, cleanly where that can be."""
        self._server.stop()

    def _process(self, condition: Callable[[psutil.Process], bool]) -> psutil.Process:
        for process in psutil.Process(self._server.pid).children(recursive=True):
            if condition(process):
                return process
        raise RuntimeError(f"{self._server.name} has no such process")

    def _is_ready(self) -> bool:
        self._server.check()
        try:
            with urlopen(f"{self.url}/readyz", timeout=5):
                return True
        except (URLError, ConnectionError):
            return False


@dataclass(frozen=True)
class Load:
    """One kind of load.

    Closed, with `in_flight` requests; or open, at `rate` requests a second, or at half of the
    entries a second that the row `half_of` has shown in this round.
    """

    entries: int
    in_flight: int = 1
    format: str = "msgpack"
    http: str = "2"
    rate: float = 0.0
    half_of: str = ""

    @property
    def label(self) -> str:
        """For the table."""
        name = "MessagePack" if self.format == "msgpack" else "JSON"
        many = "entry" if self.entries == 1 else "entries"
        pace = f"{self.in_flight} in flight"
        if self.half_of:
            pace = "half of the peak"
        elif self.rate:
            pace = f"{self.rate:.0f} a second"
        return f"HTTP/{self.http}, {name}, {self.entries} {many}, {pace}"

    def job(self, url: str, measured: Mapping[str, Metrics]) -> Job:
        """The load on `url`, after what else was `measured` in this round."""
        rate = self.rate
        if self.half_of:
            rate = measured[self.half_of]["entries_per_s"] / self.entries / 2
        return Job(
            driver="http",
            target=f"{url}/entries",
            entries=self.entries,
            in_flight=self.in_flight,
            # More than machines of today take, and not so many that making them takes long.
            sends=math.ceil(rate) + 1 if rate else math.ceil(300_000 / (self.entries + 12)),
            rate=rate,
            options={"format": self.format, "http": self.http},
        )


@dataclass
class Journal:
    """The service under one set of settings, and the loads that it gets."""

    name: str
    title: str
    loads: Mapping[str, Load]
    settings: Mapping[str, str] = field(default_factory=lambda: WITHOUT_REPLICATION)
    signing: bool = False
    _service: Service | None = field(default=None, init=False)

    def missing(self) -> str | None:
        """Nothing can be missing."""
        return None

    def rows(self) -> Sequence[Row]:
        """A row a load."""
        return [self._row(name, load) for name, load in self.loads.items()]

    def launch(self, scratch: Path) -> None:
        """Start the service, with a cold key if it is to sign."""
        settings = dict(self.settings)
        if self.signing:
            key = scratch / f"{self.name}.key"
            key.touch(mode=0o600)
            key.write_text(secrets.token_hex(32))
            settings["COLD_KEY_FILE"] = str(key)
        self._service = Service(self.name, settings)
        self._service.launch(scratch)

    def ready(self) -> None:
        """Wait until entries can be acknowledged."""
        self.service.ready()

    def close(self) -> None:
        """Stop the service."""
        if self._service is not None:
            self._service.stop()

    @property
    def service(self) -> Service:
        """The service, once it was launched."""
        if self._service is None:
            raise RuntimeError(f"{self.name} was not launched")
        return self._service

    def _row(self, name: str, load: Load) -> Row:
        def measure(turn: Round) -> Metrics:
            return put_on(turn, load.job(self.service.url, turn.measured))

        needs = (load.half_of,) if load.half_of else ()
        return Row(name, f"{self.title}, {load.label}", measure, needs)


def plain() -> Journal:
    """All the ways to send entries, without blocks and replication."""
    return Journal(
        "journal",
        "journal",
        {
            "journal-1": Load(1, 64),
            "journal-1-half": Load(1, half_of="journal-1"),
            "journal-1-lone": Load(1, 1),
            "journal-2000": Load(1, rate=2000),
            "journal-10": Load(10, 32),
            "journal-100": Load(100, 16),
            "journal-1000": Load(1000, 3),
            "journal-1-json": Load(1, 64, format="json"),
            "journal-100-json": Load(100, 16, format="json"),
            "journal-1-http1": Load(1, 64, http="1"),
            "journal-100-http1": Load(100, 16, http="1"),
        },
    )


def with_blocks() -> Journal:
    """Every command in a block, blocks signed."""
    return Journal(
        "journal-blocks",
        "journal with signed blocks",
        {"journal-100-blocks": Load(100, 16)},
        {**WITHOUT_REPLICATION, "BLOCK_COMMANDS": "*"},
        signing=True,
    )
