"""The picture of a run, for the README: `python -m bench.plot RESULTS.json PICTURE.png`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from matplotlib import pyplot

from bench.report import Line, Report

_METRIC: Final = "entries_per_s"
_JOURNAL: Final = "#1f6feb"
_LIMIT: Final = "#8b949e"
_OTHER: Final = "#d29922"
# Title, and the rows in it.
PANELS: Final = (
    (
        "Single entries, durable at acknowledgement",
        ("null-1", "limit-1", "journal-1", "postgres-1", "redis", "nats", "etcd", "kafka"),
    ),
    (
        "Batches, durable at acknowledgement",
        (
            "limit-100",
            "journal-100",
            "journal-1000",
            "journal-100-json",
            "journal-100-blocks",
            "journal-100-replicated",
            "postgres-100",
            "redis-pipelined",
            "redis-pipelined-16",
        ),
    ),
)


def draw(found: Report, picture: Path) -> None:
    """Bars of the medians, with lines from the lowest to the highest round."""
    lines = {line.name: line for line in found.lines if _METRIC in line.metrics}
    panels = [(title, [lines[name] for name in names if name in lines]) for title, names in PANELS]
    panels = [(title, rows) for title, rows in panels if rows]
    if not panels:
        raise ValueError("none of the rows of the picture was measured")
    heights = [len(rows) for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        squeeze=False,
        figsize=(10, 1.4 + 0.42 * sum(heights)),
        height_ratios=heights,
        layout="constrained",
    )
    for axis, (title, rows) in zip(axes[:, 0], panels, strict=True):
        _draw_panel(axis, title, rows)
    machine = found.machine
    figure.supxlabel(
        f"entries a second; {machine['cores']} cores, load generator on the same machine, "
        f"median of {found.rounds} interleaved rounds",
        fontsize=9,
    )
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def _draw_panel(axis: pyplot.Axes, title: str, rows: Sequence[Line]) -> None:
    rates = [row.metrics[_METRIC] for row in rows]
    medians = [rate.median for rate in rates]
    spread = (
        [rate.median - rate.lowest for rate in rates],
        [rate.highest - rate.median for rate in rates],
    )
    labels = [row.label.replace(", MessagePack", "") for row in rows]
    colours = [_colour(row.name) for row in rows]
    bars = axis.barh(labels, medians, xerr=spread, color=colours, ecolor="#30363d", capsize=2)
    axis.bar_label(bars, [f"{rate:,.0f}" for rate in medians], padding=6, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_title(title, fontsize=11, loc="left")
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.spines[["top", "right"]].set_visible(False)


def _colour(row: str) -> str:
    if row.startswith("journal"):
        return _JOURNAL
    return _LIMIT if row.startswith(("limit", "null")) else _OTHER


if __name__ == "__main__":
    results, target = map(Path, sys.argv[1:])
    draw(msgspec.json.decode(results.read_bytes(), type=Report), target)
