"""The run: every contestant up at once, and in each round a short slice of every row."""

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

from bench.contestant import Contestant, Metrics, Round, Row
from bench.generator import Generator


def chosen(contestants: Iterable[Contestant], patterns: Sequence[str]) -> list[str]:
    """The names of the rows that match one of `patterns`, and of those that they need."""
    rows = {row.name: row for each in contestants for row in each.rows()}
    names = {name for name in rows for pattern in patterns if fnmatchcase(name, pattern)}
    needed = {need for name in names for need in rows[name].needs}
    return [name for name in rows if name in names | needed]


class Benchmark:
    """The contestants that have a chosen row and can take part, up for as long as the block lasts.

    `absent` says who can't take part, and why.
    """

    def __init__(
        self, contestants: Iterable[Contestant], names: Sequence[str], scratch: Path
    ) -> None:
        self.absent: dict[str, str] = {}
        self.rows: list[Row] = []
        self._scratch = scratch
        self._stack = ExitStack()
        self._contestants: list[Contestant] = []
        for contestant in contestants:
            rows = [row for row in contestant.rows() if row.name in names]
            reason = contestant.missing() if rows else None
            if reason:
                self.absent[contestant.name] = reason
            elif rows:
                self._contestants.append(contestant)
                self.rows += rows

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._generator = stack.enter_context(Generator())
            for contestant in self._contestants:
                stack.callback(contestant.close)
                contestant.launch(self._scratch)
            for contestant in self._contestants:
                contestant.ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def warm_up(self, seconds: float) -> None:
        """A short slice of every row that is slow at first, to be forgotten."""
        self._take(seconds, [row for row in self.rows if row.warms_up])

    def round(self, seconds: float, *, slow: bool = True) -> dict[str, Metrics]:
        """One slice of every row, `seconds` long; of the slow ones too, or not."""
        return self._take(seconds, [row for row in self.rows if slow or not row.slow])

    def _take(self, seconds: float, rows: Sequence[Row]) -> dict[str, Metrics]:
        turn = Round(self._generator, seconds)
        for row in rows:
            turn.measured[row.name] = row.measure(turn)
            _say(f"  {row.name:24} {_short(turn.measured[row.name])}")
        return turn.measured


def _short(metrics: Metrics) -> str:
    return "  ".join(f"{name} {value:,.4g}" for name, value in metrics.items())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
