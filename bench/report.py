"""What a run has shown: as a table, and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from bench.contestant import Row
from bench.machine import machine
from bench.ratios import Ratio, Rounds, Verdict, judge


class Spread(Struct, frozen=True):
    """A metric over the rounds."""

    median: float
    lowest: float
    highest: float


class Line(Struct, kw_only=True, frozen=True):
    """A row of the table."""

    name: str
    label: str
    metrics: dict[str, Spread]


class Report(Struct, kw_only=True, frozen=True):
    """A whole run."""

    machine: dict[str, Any]
    rounds: int
    seconds: float
    lines: list[Line]
    verdicts: list[Verdict]
    absent: dict[str, str]
    others_share: float = 0.0

    @property
    def short_of(self) -> list[Verdict]:
        """The ratios that were measured and not kept."""
        return [verdict for verdict in self.verdicts if verdict.met is False]


def report(
    rows: Sequence[Row],
    rounds: Rounds,
    ratios: Sequence[Ratio],
    seconds: float,
    absent: Mapping[str, str],
    others_share: float,
) -> Report:
    """Sum up the rounds, and judge the ratios."""
    return Report(
        machine=machine(),
        rounds=len(rounds),
        seconds=seconds,
        lines=[_line(row, rounds) for row in rows],
        verdicts=[judge(ratio, rounds) for ratio in ratios],
        absent=dict(absent),
        others_share=others_share,
    )


def write(found: Report, file: Path) -> None:
    """The same as JSON, for the plot and for later."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def as_text(found: Report) -> str:
    """The tables."""
    lines = []
    if found.lines:
        title = f"{found.rounds} rounds of {found.seconds:g} s a row: median (lowest to highest)"
        lines = [title, ""]
    lines += [
        f"{line.label:58} " + "   ".join(map(_metric, line.metrics.items())) for line in found.lines
    ]
    lines += [f"{name}: left out, {reason}" for name, reason in found.absent.items()]
    lines += ["", "ratios, computed in each round: median (lowest to highest)", ""]
    lines += [_ratio(verdict) for verdict in found.verdicts]
    if found.short_of:
        lines += ["", "short of: " + ", ".join(verdict.name for verdict in found.short_of)]
    lines += ["", f"others took {found.others_share:.0%} of the machine meanwhile"]
    if found.others_share > _QUIET_SHARE:
        lines.append("that is too much to conclude anything: measure on an idle machine")
    return "\n".join(lines)


def _line(row: Row, rounds: Rounds) -> Line:
    metrics = {}
    taken = [measured[row.name] for measured in rounds if row.name in measured]
    for metric in taken[0] if taken else ():
        values = [slice_of[metric] for slice_of in taken]
        metrics[metric] = Spread(median(values), min(values), max(values))
    return Line(name=row.name, label=row.label, metrics=metrics)


def _metric(item: tuple[str, Spread]) -> str:
    name, spread = item
    title, digits = _TITLES.get(name, (name, 2))
    middle, lowest, highest = (
        f"{value:,.{digits}f}" for value in (spread.median, spread.lowest, spread.highest)
    )
    return f"{title} {middle} ({lowest} to {highest})"


_QUIET_SHARE = 0.05
_TITLES = {
    "entries_per_s": ("entries/s", 0),
    "mb_per_s": ("MB/s", 0),
    "p50_ms": ("p50 ms", 2),
    "p99_ms": ("p99 ms", 2),
    "seconds": ("s", 2),
}


def _ratio(verdict: Verdict) -> str:
    start = f"{verdict.name:14} {verdict.what:64}"
    if verdict.median is None:
        return f"{start} {verdict.bound:>8}  not measured: {verdict.missing}"
    word = "ok" if verdict.met else "FALLS SHORT"
    spread = f"{verdict.median:.2f} ({verdict.lowest:.2f} to {verdict.highest:.2f})"
    return f"{start} {verdict.bound:>8}  {spread:24} {word}"
