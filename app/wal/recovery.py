"""Recovery: deciding what the end of a log means, and making it ready (protocol, section 5).

The decision table is `judge`, a pure function with one test a row. Nothing is changed before the
verdict.
"""

import logging
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from pathlib import Path

from app.errors import CorruptionError, StartRefused
from app.settings import WalTail
from app.wal.files import FileSystem, write_new_file
from app.wal.reader import Fault, FaultKind
from app.wal.scan import Evidence, Scan
from app.wal.segments import Segment, remove_drafts
from app.wal.sync import Syncer

_log = logging.getLogger(__name__)


class Verdict(Enum):
    """What the end of a log means."""

    CLEAN = auto()
    TORN_TAIL = auto()
    DAMAGED_TAIL = auto()
    CORRUPT = auto()


@dataclass(frozen=True, slots=True)
class Recovered:
    """A log that is ready to be gone on with."""

    wal_id: str
    last_segment: Segment
    retained_offset: int
    end: int
    next_command_id: int
    entries_to_replicate: int


def judge(
    fault: Fault | None, end: int, evidence: int, valid_behind: int | None, tail: WalTail
) -> Verdict:
    """The decision table: what a log that ends at `end`, with or without a fault there, means."""
    if fault is None:
        return Verdict.CLEAN if end >= evidence else Verdict.CORRUPT
    if fault.kind is FaultKind.UNDECODABLE or fault.offset < evidence or valid_behind is not None:
        return Verdict.CORRUPT
    if fault.kind is FaultKind.INCOMPLETE or tail is WalTail.TOLERANT:
        return Verdict.TORN_TAIL
    return Verdict.DAMAGED_TAIL


def recover(
    files: FileSystem,
    scan: Scan,
    evidence: Evidence,
    tail: WalTail,
    syncer: Syncer,
) -> Recovered:
    """Act on a scan: cut a torn tail, or refuse; then make what is kept durable again.

    Raises `CorruptionError` (nothing is changed) or `StartRefused` (a damaged tail under `strict`).
    """
    verdict = judge(scan.fault, scan.end, evidence.offset, scan.valid_behind, tail)
    last = scan.segments[-1]
    if verdict is Verdict.CORRUPT:
        raise corruption(scan, evidence)
    if verdict is Verdict.DAMAGED_TAIL and scan.fault is not None:
        raise StartRefused(
            f"{last.path.name}: offset {scan.fault.offset}: {scan.fault.reason}. It is the last "
            "record and nothing shows that it was acknowledged; `journal wal repair` can cut it "
            "off, and so does JOURNAL_WAL_TAIL=tolerant"
        )
    remove_drafts(files, last.path.parent)
    if verdict is Verdict.TORN_TAIL:
        cut_tail(files, scan, syncer)
    last = scan.segments[-1]
    _rewrite_last_record(files, last, scan.last_record, scan.end, syncer)
    return Recovered(
        wal_id=scan.wal_id,
        last_segment=last,
        retained_offset=scan.kept_from,
        end=scan.end,
        next_command_id=scan.next_command_id,
        entries_to_replicate=scan.entries_behind,
    )


def corruption(scan: Scan, evidence: Evidence) -> CorruptionError:
    """The error that describes a corrupt log."""
    if scan.fault is None:
        return CorruptionError(
            scan.segments[-1].path.name,
            scan.end,
            f"the log ends here, but {evidence.source} shows that it was durable up to "
            f"{evidence.offset}",
        )
    reason = scan.fault.reason
    if scan.fault.offset < evidence.offset:
        reason += f"; {evidence.source} shows that the log was durable up to {evidence.offset}"
    elif scan.valid_behind is not None:
        reason += f"; a valid record follows at offset {scan.valid_behind}"
    return CorruptionError(scan.fault.segment.path.name, scan.fault.offset, reason)


def cut_tail(files: FileSystem, scan: Scan, syncer: Syncer) -> Path:
    """Copy what lies behind the last good record aside, cut it off and sync.

    Returns the copy's path. A copy that an earlier cut at the same offset has left is kept.
    """
    last = scan.segments[-1]
    fd = files.open(last.path, write=True)
    try:
        tail = files.read(fd, last.end - scan.end, scan.end - last.start)
        aside = _path_aside(files, last.path, scan.end, tail)
        if scan.end > last.start:
            write_new_file(files, aside, tail)
            files.truncate(fd, scan.end - last.start)
        syncer.sync(fd)
    finally:
        files.close(fd)
    _log.warning(
        "cut a torn tail of %d bytes off %s at offset %d (%s); nothing shows that it was "
        "acknowledged; it is copied to %s",
        last.end - scan.end,
        last.path.name,
        scan.end,
        scan.fault.reason if scan.fault else "no fault",
        aside.name,
    )
    if scan.end > last.start:
        scan.segments[-1] = Segment(last.path, last.start, scan.end - last.start)
    else:
        # Nothing of the segment is kept: moving it aside is the copy and the cut in one step.
        files.rename(last.path, aside)
        files.sync_directory(last.path.parent)
        scan.segments.pop()
    return aside


def _path_aside(files: FileSystem, segment: Path, end: int, tail: bytes) -> Path:
    """Where a tail is copied to: no file yet, or its copy from before a crash."""
    path = segment.with_name(f"{segment.name}.{end}.torn")
    for number in count(2):
        if not files.exists(path) or files.read_file(path) == tail:
            break
        path = segment.with_name(f"{segment.name}.{end}.{number}.torn")
    return path


def _rewrite_last_record(
    files: FileSystem, segment: Segment, offset: int, end: int, syncer: Syncer
) -> None:
    """Write the last record in place once more and sync it.

    A process that died may have left it in the page cache alone, or after a failed sync even marked
    clean; only a fresh write makes the sync mean something.
    """
    if not segment.start <= offset < end:
        return
    fd = files.open(segment.path, write=True)
    try:
        files.write(
            fd, files.read(fd, end - offset, offset - segment.start), offset - segment.start
        )
        syncer.sync(fd)
    finally:
        files.close(fd)
    files.sync_directory(segment.path.parent)
