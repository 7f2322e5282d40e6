"""Ten million entries later: `python -m bench.endurance`, or `make bench-endurance`.

The service journals 10 million entries, and is measured before and after: entries a second with the
entries of the benchmark, and the peak of its worker's memory. What fills the log are the smallest
entries there can be, in 1000-entry requests: about 0.8 GB instead of 9. *Before* is with
the duplicate window full, which is what memory is bounded by; the service runs without replication,
so that no WAL is given back meanwhile.
"""

import sys
from pathlib import Path
from statistics import median
from typing import Final

import click

from bench.contestant import Metrics, Round, put_on
from bench.contestants.journal import WITHOUT_REPLICATION, Load, Service
from bench.generator import Generator
from bench.load import Job
from bench.machine import Others, machine
from bench.ratios import Ratio, Value, judge
from bench.report import Report, as_text, write
from bench.scratch import scratch_directory

RATIOS: Final = (
    Ratio(
        "endurance",
        "throughput after 10 million entries ÷ at the start",
        Value("after"),
        Value("before"),
        0.9,
    ),
    Ratio(
        "memory",
        "peak memory after ÷ before",
        Value("after", "peak_mb"),
        Value("before", "peak_mb"),
        at_most=1.2,
    ),
)
_REQUEST_ENTRIES: Final = 1000
_PORTION: Final = 200_000
_WINDOW_ENTRIES: Final = 300_000
_NEEDED_BYTES: Final = 6 << 30
# Writing this to /proc/PID/clear_refs begins the peak anew (proc(5)).
_RESET_PEAK: Final = "5"


class Endurance:
    """One service, and what it is given."""

    def __init__(self, service: Service, generator: Generator) -> None:
        self._service = service
        self._generator = generator

    def fill(self, entries: int) -> None:
        """Journal so many of the smallest entries."""
        for done in range(0, entries, _PORTION):
            job = Job(
                driver="http",
                target=f"{self._service.url}/entries",
                entries=_REQUEST_ENTRIES,
                in_flight=3,
                warm_s=0,
                seconds=600,
                sends=min(_PORTION, entries - done) // _REQUEST_ENTRIES,
                options={"size": "small"},
            )
            self._generator.run(job)

    def measure(self, seconds: float, rounds: int) -> Metrics:
        """The median rate, and the peak of the worker's memory since the last time."""
        turn = Round(self._generator, seconds)
        job = Load(100, 16).job(self._service.url, {})
        rates = [put_on(turn, job)["entries_per_s"] for _ in range(rounds)]
        process = Path("/proc") / str(self._service.worker.pid)
        peak_mb = _peak_mb(process)
        (process / "clear_refs").write_text(_RESET_PEAK)
        return {"entries_per_s": median(rates), "peak_mb": peak_mb}


def _peak_mb(process: Path) -> float:
    status = (process / "status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


@click.command()
@click.option("--entries", default=10_000_000, show_default=True, help="How many to journal.")
@click.option("--seconds", default=2.0, show_default=True, help="How long a slice is measured.")
@click.option("--rounds", default=5, show_default=True, help="Slices before and after.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where data goes meanwhile.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the JSON.")
def main(
    entries: int, seconds: float, rounds: int, directory: Path | None, output: Path | None
) -> None:
    """Measure the journal before and after many entries."""
    with scratch_directory(directory, _NEEDED_BYTES) as scratch:
        service = Service("endurance", WITHOUT_REPLICATION)
        try:
            service.launch(scratch)
            service.ready()
            with Generator() as generator:
                others = Others(scratch)
                endurance = Endurance(service, generator)
                endurance.fill(_WINDOW_ENTRIES)
                before = endurance.measure(seconds, rounds)
                endurance.fill(entries)
                after = endurance.measure(seconds, rounds)
                others_share = others.share()
        finally:
            service.stop()
    measured = [{"before": before, "after": after}]
    found = Report(
        machine=machine(),
        rounds=rounds,
        seconds=seconds,
        lines=[],
        verdicts=[judge(ratio, measured) for ratio in RATIOS],
        absent={},
        others_share=others_share,
    )
    click.echo(f"before {before}\nafter  {after}\n")
    click.echo(as_text(found))
    if output:
        write(found, output)
    sys.exit(1 if found.short_of else 0)


if __name__ == "__main__":
    main()
