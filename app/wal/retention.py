"""Giving back.

Whole segments are unlinked, the rest is hole-punched, up to a limit (protocol, section 5).

The limit must be on disk as the checkpoint's `retained_offset` before anything is given back, since
reading begins there after a restart.
"""

import logging
from pathlib import Path

from app.errors import WalFailed
from app.wal.files import FileSystem
from app.wal.reader import SegmentReader
from app.wal.segments import Segment, list_segments

_log = logging.getLogger(__name__)


def give_back(files: FileSystem, directory: Path, start: int, limit: int) -> int:
    """Give the bytes in [`start`, `limit`) back, genesis records excepted. Returns how many were.

    `start` is where the last call ended, so that nothing is punched twice. The last segment is
    never unlinked. A file system that can't punch keeps its bytes until the whole segment goes.

    Raises `OSError` and `CorruptionError` where it may be tried again, and `WalFailed` where a sync
    has failed: what is durable of the directory is not known any more.
    """
    segments = list_segments(files, directory)
    given_back = 0
    for segment in segments[:-1]:
        if segment.end <= limit:
            # Each before the next, or a power cut could leave a gap between two.
            _unlink(files, segment.path)
            given_back += max(segment.end - max(start, segment.start), 0)
    for segment in segments:
        if segment.start < limit < segment.end or (
            segment is segments[-1] and limit == segment.end
        ):
            given_back += _punch(files, segment, max(start, segment.start), limit)
    return given_back


def _unlink(files: FileSystem, path: Path) -> None:
    directory = files.open_directory(path.parent)
    try:
        with files.naming:
            files.unlink(path)
            try:
                files.sync_names(directory)
            except OSError as error:
                raise WalFailed(f"syncing the unlinking of {path.name} failed: {error}") from error
    finally:
        files.close(directory)


def _punch(files: FileSystem, segment: Segment, start: int, limit: int) -> int:
    reader = SegmentReader(files, segment)
    try:
        genesis = next(reader.frames(segment.start), None)
    finally:
        reader.close()
    if genesis is None:
        return 0
    start = max(start, genesis.end)
    if start >= limit:
        return 0
    fd = files.open(segment.path, write=True)
    try:
        files.punch(fd, start - segment.start, limit - start)
    except OSError as error:
        _log.info(
            "can't punch %s, its bytes stay until the segment goes: %s", segment.path.name, error
        )
        return 0
    finally:
        files.close(fd)
    return limit - start
