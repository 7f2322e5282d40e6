"""The ratios that the journal has to reach, as data, and how they are judged.

A ratio is computed within each round, where both sides had the same moment of the same machine; the
median over the rounds is what counts.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from statistics import median
from typing import Final, NamedTuple

from msgspec import Struct

# Of each round, the metrics of each row.
Rounds = Sequence[Mapping[str, Mapping[str, float]]]


class Value(NamedTuple):
    """One metric of one row."""

    row: str
    metric: str = "entries_per_s"


class Ratio(NamedTuple):
    """`top` ÷ `bottom` (`top` itself when there is no bottom), and the bound that it must keep."""

    name: str
    what: str
    top: Value
    bottom: Value | None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""


class Verdict(Struct, kw_only=True, frozen=True):
    """What became of a ratio. `met` is None when it was not measured; `missing` says why."""

    name: str
    what: str
    bound: str
    unit: str = ""
    met: bool | None = None
    median: float | None = None
    lowest: float | None = None
    highest: float | None = None
    missing: str = ""


BATCHES: Final = Value("journal-100")
SINGLES: Final = Value("journal-1")

RATIOS: Final = (
    Ratio("limit", "100-entry batches ÷ limit", BATCHES, Value("limit-100"), 0.5),
    Ratio("redis", "100-entry batches ÷ Redis", BATCHES, Value("redis-pipelined"), 2),
    Ratio("postgres-100", "100-entry batches ÷ PostgreSQL", BATCHES, Value("postgres-100"), 2),
    Ratio("null", "single entries ÷ null server", SINGLES, Value("null-1"), 0.7),
    Ratio("etcd", "single entries ÷ etcd", SINGLES, Value("etcd"), 2.5),
    Ratio("postgres-1", "single entries ÷ PostgreSQL", SINGLES, Value("postgres-1"), 1.2),
    Ratio("json", "JSON ÷ MessagePack, 100 entries", Value("journal-100-json"), BATCHES, 0.6),
    Ratio("blocks", "with ÷ without signed blocks", Value("journal-100-blocks"), BATCHES, 0.5),
    Ratio(
        "lone",
        "p50 of a lone entry ÷ write + fdatasync of its record",
        Value("journal-1-lone", "p50_ms"),
        Value("limit-1", "p50_ms"),
        at_most=3.5,
    ),
    Ratio(
        "tail",
        "p99 ÷ p50 at half of the peak load",
        Value("journal-1-half", "p99_ms"),
        Value("journal-1-half", "p50_ms"),
        at_most=5,
    ),
    Ratio(
        "replicated",
        "replication of a backlog ÷ bare COPY pipeline",
        Value("replicated"),
        Value("copy"),
        0.8,
    ),
    Ratio(
        "even",
        "p99 at 2000 entries/s, with ÷ without replication",
        Value("journal-2000-replicated", "p99_ms"),
        Value("journal-2000", "p99_ms"),
        at_most=1.3,
    ),
    Ratio(
        "recovery",
        "recovery scan ÷ reading + CRC-32C",
        Value("scan", "mb_per_s"),
        Value("read", "mb_per_s"),
        0.5,
    ),
    Ratio(
        "start",
        "start to ready, external PostgreSQL",
        Value("start", "seconds"),
        None,
        at_most=1,
        unit=" s",
    ),
    Ratio(
        "start-embedded",
        "start to ready, embedded PostgreSQL",
        Value("start-embedded", "seconds"),
        None,
        at_most=3,
        unit=" s",
    ),
    Ratio(
        "generator",
        "load generator on the null server ÷ on the journal, 100 entries",
        Value("null-100"),
        BATCHES,
        1.0,
    ),
)


def rows_of(ratios: Sequence[Ratio], patterns: Sequence[str]) -> list[str]:
    """The rows that the ratios need whose names match one of `patterns`."""
    return [
        side.row
        for ratio in ratios
        if any(fnmatchcase(ratio.name, pattern) for pattern in patterns)
        for side in (ratio.top, ratio.bottom)
        if side is not None
    ]


def judge(ratio: Ratio, rounds: Rounds) -> Verdict:
    """Whether a ratio is kept, over all rounds that have both sides of it."""
    sign, bound = ("≥", ratio.at_least) if ratio.at_least is not None else ("≤", ratio.at_most)
    if bound is None:
        raise ValueError(f"the ratio {ratio.name!r} has no bound")
    verdict = Verdict(
        name=ratio.name,
        what=ratio.what,
        bound=f"{sign} {bound:g}{ratio.unit}",
        unit=ratio.unit,
        missing=_missing(ratio, rounds),
    )
    if verdict.missing:
        return verdict
    values = [_of(ratio, rows) for rows in rounds if _has(ratio, rows)]
    middle = median(values)
    return Verdict(
        name=verdict.name,
        what=verdict.what,
        bound=verdict.bound,
        unit=verdict.unit,
        met=middle >= bound if ratio.at_least is not None else middle <= bound,
        median=middle,
        lowest=min(values),
        highest=max(values),
    )


def _of(ratio: Ratio, rows: Mapping[str, Mapping[str, float]]) -> float:
    top = rows[ratio.top.row][ratio.top.metric]
    return top if ratio.bottom is None else top / rows[ratio.bottom.row][ratio.bottom.metric]


def _sides(ratio: Ratio) -> list[str]:
    return [ratio.top.row] if ratio.bottom is None else [ratio.top.row, ratio.bottom.row]


def _has(ratio: Ratio, rows: Mapping[str, Mapping[str, float]]) -> bool:
    return all(side in rows for side in _sides(ratio))


def _missing(ratio: Ratio, rounds: Rounds) -> str:
    if any(_has(ratio, rows) for rows in rounds):
        return ""
    absent = {side for side in _sides(ratio) if not any(side in rows for rows in rounds)}
    return f"without {', '.join(sorted(absent or _sides(ratio)))}"
