"""`python -m bench`: the whole benchmark, or what is chosen of it. Exits with 1 on a lost ratio."""

import sys
import tempfile
from pathlib import Path
from typing import Final

import click
import msgspec

from bench.contestant import Contestant
from bench.contestants import journal
from bench.contestants.etcd import Etcd
from bench.contestants.kafka import Kafka
from bench.contestants.limit import Limit
from bench.contestants.nats import Nats
from bench.contestants.null import Null
from bench.contestants.postgres import Cluster, Postgres
from bench.contestants.recovery import Recovery
from bench.contestants.redis import Redis
from bench.contestants.replication import Replication
from bench.contestants.starting import Starting
from bench.ratios import RATIOS, rows_of
from bench.report import as_text, report
from bench.rounds import Benchmark, chosen

RESULTS: Final = Path(__file__).with_name("results")


def contestants() -> list[Contestant]:
    """Everybody, in the order of the table."""
    cluster = Cluster()
    return [
        Limit(),
        Null(),
        journal.plain(),
        journal.with_blocks(),
        Replication(cluster),
        Postgres(cluster),
        Redis(),
        Etcd(),
        Nats(),
        Kafka(),
        Recovery(),
        Starting(cluster),
    ]


@click.command()
@click.option("--rounds", default=5, show_default=True, help="How often each row has a slice.")
@click.option("--seconds", default=2.0, show_default=True, help="How long a slice is measured.")
@click.option("--only", multiple=True, metavar="GLOB", help="Rows to measure; may be repeated.")
@click.option("--ratio", multiple=True, metavar="GLOB", help="Ratios to measure; may be repeated.")
@click.option("--slow-rounds", type=int, help="In how many of the rounds slow rows take part.")
@click.option("--list", "listing", is_flag=True, help="Name the rows and the ratios.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write the JSON.")
def main(
    rounds: int,
    seconds: float,
    only: tuple[str, ...],
    ratio: tuple[str, ...],
    listing: bool,
    slow_rounds: int | None,
    output: Path | None,
) -> None:
    """Measure the journal beside the disk, a null server and what users would pick instead."""
    everybody = contestants()
    if listing:
        for each in everybody:
            for row in each.rows():
                click.echo(f"{row.name:24} {row.label}")
        for item in RATIOS:
            click.echo(f"--ratio {item.name:16} {item.what}")
        return
    wanted = [*only, *rows_of(RATIOS, ratio)] or ["*"]
    names = chosen(everybody, wanted)
    with tempfile.TemporaryDirectory(prefix="journal-bench-") as directory:
        with Benchmark(everybody, names, Path(directory)) as benchmark:
            benchmark.warm_up(seconds / 4)
            measured = [
                benchmark.round(seconds, slow=slow_rounds is None or number < slow_rounds)
                for number in range(rounds)
            ]
        found = report(benchmark.rows, measured, RATIOS, seconds, benchmark.absent)
    click.echo(as_text(found))
    if output:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    sys.exit(1 if found.short_of else 0)


if __name__ == "__main__":
    main()
