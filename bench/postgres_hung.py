"""What clients notice of a Postgres that hangs: nothing.

`python -m bench.postgres_hung [ROUNDS]`: single-entry MessagePack requests over HTTP/2 at a fixed
rate, in rounds by turns with Postgres healthy and with all of its processes stopped (SIGSTOP), in
which every statement waits. Prints the p99 of the acknowledgement in both, as the median of the
rounds with minimum and maximum, and exits with 1 when their ratio is above 1.5.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from msgspec.structs import replace

from app.embedded import EmbeddedPostgres
from bench.contestants.journal import Load, Service
from bench.generator import Generator

_MOST: Final = 1.5
_LOAD: Final = Load(1, rate=1000)
_SECONDS: Final = 4.0
_ROUNDS: Final = 8


@contextmanager
def hung(directory: Path) -> Iterator[None]:
    """Stop every process of the server in `directory`, and let them go on afterwards."""
    postmaster = int((directory / "postmaster.pid").read_text().split("\n", 1)[0])
    parent = psutil.Process(postmaster)
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


def p99_ms(generator: Generator, service: Service) -> float:
    """The 99th percentile of one slice of load."""
    sends = int(_LOAD.rate * (_SECONDS + 1))
    job = replace(_LOAD.job(service.url, {}), seconds=_SECONDS, sends=sends)
    return generator.run(job).p99_ms


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def main(rounds: int) -> int:
    """Measure both by turns; returns the exit status."""
    results: dict[str, list[float]] = {"healthy": [], "hung": []}
    with tempfile.TemporaryDirectory() as scratch, Generator() as generator:
        directory = Path(scratch) / "postgres"
        postgres = EmbeddedPostgres(directory)
        service = Service("journal", {"DATABASE_URL": postgres.start(), "AUTO_MIGRATE": "true"})
        try:
            service.launch(Path(scratch))
            service.ready()
            for _ in range(rounds):
                # What has piled up is replicated first: only the fault differs.
                service.flush()
                results["healthy"].append(p99_ms(generator, service))
                service.flush()
                with hung(directory):
                    results["hung"].append(p99_ms(generator, service))
        finally:
            service.stop()
            postgres.stop()
    for name, figures in results.items():
        lowest, highest = min(figures), max(figures)
        say(f"{name:8} p99 {median(figures):7.2f} ms ({lowest:.2f} to {highest:.2f})")
    ratio = median(results["hung"]) / median(results["healthy"])
    say(f"ratio    {ratio:11.2f} (at most {_MOST})")
    return 0 if ratio <= _MOST else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS))
