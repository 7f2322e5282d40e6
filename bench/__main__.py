"""`python -m bench`: the whole benchmark, or what is chosen of it. Exits with 1 on a lost ratio."""

import sys
from pathlib import Path
from typing import Final

import click

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
from bench.machine import Others
from bench.ratios import RATIOS, rows_of
from bench.report import as_text, report, write
from bench.rounds import Benchmark, chosen
from bench.scratch import scratch_directory

_RESULTS: Final = Path(__file__).with_name("results")
# The log of the journal that has no Postgres is kept whole.
_NEEDED_BYTES: Final = 16 << 30


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
@click.option("--quick", is_flag=True, help="The ratios alone, in less than a minute.")
@click.option("--rounds", type=int, help="How often each row has a slice (5; quick: 2).")
@click.option("--seconds", type=float, help="How long a slice is measured (2; quick: 0.4).")
@click.option("--only", multiple=True, metavar="GLOB", help="Rows to measure; may be repeated.")
@click.option("--ratio", multiple=True, metavar="GLOB", help="Ratios to measure; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Name the rows and the ratios.")
@click.option("--directory", type=click.Path(path_type=Path), help="Where data goes meanwhile.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write the JSON (a full run: results/latest.json).",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Where to draw the picture (results/latest.png).",
)
def main(
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    only: tuple[str, ...],
    ratio: tuple[str, ...],
    listing: bool,
    directory: Path | None,
    output: Path | None,
    plot: Path | None,
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
    rounds = rounds or (2 if quick else 5)
    seconds = seconds or (0.4 if quick else 2.0)
    everything = not (quick or only or ratio)
    if quick and not (only or ratio):
        ratio = ("*",)
    names = chosen(everybody, ["*"] if everything else [*only, *rows_of(RATIOS, ratio)])
    if not names:
        raise click.UsageError("no row and no ratio has such a name; see --list")
    with scratch_directory(directory, _NEEDED_BYTES) as scratch:
        with Benchmark(everybody, names, scratch) as benchmark:
            benchmark.warm_up(seconds / 4)
            others = Others(scratch)
            measured = [
                benchmark.round(seconds, slow=not quick or number == 0) for number in range(rounds)
            ]
            share = others.share()
        found = report(benchmark.rows, measured, RATIOS, seconds, benchmark.absent, share)
    click.echo(as_text(found))
    if output or everything:
        write(found, output or _RESULTS / "latest.json")
    if plot or everything:
        from bench.plot import draw  # noqa: PLC0415 - of the benchmark's environment alone

        draw(found, plot or _RESULTS / "latest.png")
    sys.exit(1 if found.short_of else 0)


if __name__ == "__main__":
    main()
