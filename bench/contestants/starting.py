"""From the start of the process to ready: entries can be acknowledged.

On a data directory that was used before, with 20,000 entries that are all replicated, and stopped
cleanly. Once with a PostgreSQL that runs already, once with the embedded one, its cluster there.
"""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from bench.contestant import Metrics, Row
from bench.contestants.journal import Service
from bench.contestants.postgres import Cluster
from bench.generator import Generator
from bench.load import Job

_ENTRIES: Final = 20_000


class Starting:
    """Starts and stops services."""

    name = "starting"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._started = False
        self._services: list[Service] = []

    def missing(self) -> str | None:
        """It comes with the development environment."""
        return None

    def rows(self) -> Sequence[Row]:
        """With either kind of Postgres."""
        return [
            Row(
                "start",
                "start to ready, external PostgreSQL",
                lambda _: self._start(0),
                slow=True,
                warms_up=False,
            ),
            Row(
                "start-embedded",
                "start to ready, embedded PostgreSQL",
                lambda _: self._start(1),
                slow=True,
                warms_up=False,
            ),
        ]

    def launch(self, scratch: Path) -> None:
        """Start both for the first time: databases and clusters are made now."""
        self._cluster.start(scratch)
        self._started = True
        self._scratch = scratch
        settings = {"DATABASE_URL": self._cluster.database("starting"), "AUTO_MIGRATE": "true"}
        self._services = [
            Service("starting", settings),
            Service("starting-embedded", {"DATABASE_URL": "embedded"}),
        ]
        for service in self._services:
            service.launch(scratch)

    def ready(self) -> None:
        """Journal something, and stop."""
        for service in self._services:
            service.ready()
            with Generator() as generator:
                generator.run(_load(service.url))
            service.flush()
            service.stop()

    def close(self) -> None:
        """Stop what runs."""
        for service in self._services:
            service.stop()
        if self._started:
            self._cluster.stop()

    def _start(self, index: int) -> Metrics:
        service = self._services[index]
        started = perf_counter()
        service.launch(self._scratch)
        service.ready()
        seconds = perf_counter() - started
        service.stop()
        return {"seconds": seconds}


def _load(url: str) -> Job:
    return Job(
        driver="http",
        target=f"{url}/entries",
        entries=100,
        in_flight=16,
        warm_s=0,
        seconds=60,
        sends=_ENTRIES // 100,
    )
