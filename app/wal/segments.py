"""Segments: the files of a WAL, named by the logical offset of their first byte.

Offsets run through all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from app.errors import CorruptionError
from app.wal.files import DRAFT_SUFFIX, FileSystem

SUFFIX: Final = ".wal"
_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the log.

    `start` is the logical offset of its first byte, `size` its length in bytes.
    """

    path: Path
    start: int
    size: int

    @property
    def end(self) -> int:
        """The logical offset behind its last byte."""
        return self.start + self.size


def segment_name(start: int) -> str:
    """The file name of the segment that begins at a logical offset."""
    return f"{start:0{_DIGITS}}{SUFFIX}"


def segment_start(name: str) -> int | None:
    """The logical offset in a segment's name; None when it is no segment's name."""
    digits = name.removesuffix(SUFFIX)
    if digits == name or len(digits) != _DIGITS or not (digits.isascii() and digits.isdigit()):
        return None
    return int(digits)


def list_segments(files: FileSystem, directory: Path) -> list[Segment]:
    """The segments in a directory, in order. Raises `CorruptionError` where offsets do not meet."""
    segments: list[Segment] = []
    for name in files.names(directory):
        start = segment_start(name)
        if start is not None:
            path = directory / name
            try:
                segments.append(Segment(path, start, files.size_of(path)))
            except FileNotFoundError:
                # Given back meanwhile, and so was all before it: the oldest goes first.
                segments.clear()
    check_contiguous(segments)
    return segments


def check_contiguous(segments: Sequence[Segment]) -> None:
    """Every segment must begin where the one before it ends."""
    for before, after in pairwise(segments):
        if before.end < after.start:
            raise CorruptionError(
                before.path.name,
                before.end,
                f"the log goes on at {after.start} in {after.path.name}: a segment or a part of "
                "one is missing",
            )
        if before.end > after.start:
            raise CorruptionError(
                after.path.name,
                after.start,
                f"overlaps {before.path.name}, which ends at {before.end}",
            )


def remove_drafts(files: FileSystem, directory: Path) -> None:
    """Remove what a crash in the middle of creating a file has left.

    No draft was ever part of the log.
    """
    for name in files.names(directory):
        if name.endswith(DRAFT_SUFFIX):
            files.unlink(directory / name)
