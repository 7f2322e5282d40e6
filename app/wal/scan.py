"""Reading a whole log at start: what is in it, and where and how it ends (protocol, section 5).

Streaming: memory is bounded by one record, whatever the length of the log. Nothing is changed here;
what a fault means is decided in `app.wal.recovery`.

The CRC of every record is computed. What has been replicated was decoded then, every byte of it,
and is what it was when its CRC is right: of that beginning and end are read, and the keys where the
duplicate index covers it. What has not been is decoded whole, only to see that it does.
"""

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from app.errors import CorruptionError, StartRefused
from app.wal.checkpoint import Checkpoint
from app.wal.decoding import decode_keyed, decode_raw, decode_record
from app.wal.dedup import DuplicateIndex
from app.wal.files import FileSystem
from app.wal.genesis import check_owner, check_same_log, read_genesis
from app.wal.reader import (
    Fault,
    FaultKind,
    Frame,
    SegmentReader,
    decode_frame,
    decoded,
    read_frames,
    segment_of,
)
from app.wal.record import Batch, Genesis, KeyedBatch, Outline, RawBatch, read_outline
from app.wal.segments import Segment, list_segments

_SAMPLE_ENTRIES: Final = 1024
# Shorter ones are decoded sooner than their outline is read.
_LONG_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Evidence:
    """The highest offset that is known to have been durable, and who says so.

    `is_told`: Postgres was there to say how far this log has been replicated, if at all. What ends
    at or before `replicated` has been replicated once, even if Postgres has gone back since.
    """

    offset: int
    source: str
    is_told: bool = False
    replicated: int = 0


@dataclass(slots=True)
class Scan:
    """What reading a log from `start` to its end has shown. Offsets are logical."""

    segments: list[Segment]
    wal_id: str
    start: int
    # Where the log is kept from: `start`, or the genesis right before it.
    kept_from: int
    end: int
    next_command_id: int
    last_record: int
    entries_behind: int = 0
    # No block ends behind here.
    blocks_end: int = 0
    fault: Fault | None = None
    valid_behind: int | None = None
    # (offset, entries up to there), a sample now and then: enough to find the start of the window.
    samples: deque[tuple[int, int]] = field(default_factory=deque)
    entries: int = 0


def scan_log(
    files: FileSystem,
    directory: Path,
    environment: str,
    checkpoint: Checkpoint | None,
    evidence: Evidence,
    dedup_window: int,
) -> Scan:
    """Read the log from its first kept record to its end. Changes nothing.

    Raises `CorruptionError` for what no tail can explain: segments that do not meet, another log's
    record.
    """
    segments = list_segments(files, directory)
    first = segments[0]
    genesis, behind = read_genesis(files, first)
    check_owner(first, genesis, environment, checkpoint)
    start = _first_kept(files, first, behind, checkpoint, evidence)
    kept_from = first.start if start == behind else start
    scan = Scan(
        segments=segments,
        wal_id=genesis.wal_id,
        start=start,
        kept_from=kept_from,
        end=min(start, segments[-1].end),
        next_command_id=genesis.first_command_id,
        last_record=kept_from,
    )
    known = _Known(
        marks=(checkpoint.wal_offset if checkpoint else evidence.offset, evidence.offset),
        replicated=evidence.replicated,
        window=dedup_window,
    )
    _check_marks(first, first.start, behind, known.marks)
    at = segment_of(segments, start)
    for segment in segments[1 : at + 1]:
        check_same_log(segment, read_genesis(files, segment)[0], genesis)
    for index in range(at, len(segments)):
        _scan_segment(files, scan, index, genesis, known)
        if scan.fault is not None:
            scan.valid_behind = _find_behind(files, segments, index, scan.fault.offset + 1)
            break
    return scan


def load_index(files: FileSystem, scan: Scan, index: DuplicateIndex, window: int) -> None:
    """Fill the duplicate index with at least the newest `window` entries of a scanned log.

    Raises `CorruptionError`.
    """
    start = scan.start
    for offset, entries in scan.samples:
        if scan.entries - entries < window:
            break
        start = offset
    for segment, frame in read_frames(files, scan.segments, start, scan.end):
        record = decoded(segment, frame, decode_keyed)
        if isinstance(record, KeyedBatch) and record.commands:
            index.add(frame.offset, frame.end, record.first_command_id, record.keys)


class _Known(NamedTuple):
    """What is known before reading: where records must end, and which ones need how much of it."""

    marks: tuple[int, int]
    replicated: int
    window: int


def _scan_segment(files: FileSystem, scan: Scan, index: int, owner: Genesis, known: _Known) -> None:
    segment = scan.segments[index]
    reader = SegmentReader(files, segment)
    try:
        for frame in reader.frames(max(scan.start, segment.start)):
            decode = _outline if frame.end <= known.replicated else _outline_of_whole
            record = decode_frame(segment, frame, decode)
            if not isinstance(record, Fault):
                record = _check_order(scan, segment, frame, record, owner)
            if isinstance(record, Fault):
                scan.fault = record
                return
            _check_marks(segment, frame.offset, frame.end, known.marks)
            scan.last_record, scan.end = frame.offset, frame.end
            if isinstance(record, Outline):
                _count(scan, frame, record, known)
        scan.fault = reader.fault
        if scan.fault is None and segment.size == 0:
            scan.fault = Fault(segment, segment.start, FaultKind.INCOMPLETE, "the segment is empty")
    finally:
        reader.close()


def _outline(payload: memoryview) -> Genesis | Outline:
    outline = read_outline(payload) if len(payload) > _LONG_BYTES else None
    return outline or _outlined(decode_raw(payload))


def _outline_of_whole(payload: memoryview) -> Genesis | Outline:
    return _outlined(decode_record(payload))


def _outlined(record: Genesis | RawBatch | Batch) -> Genesis | Outline:
    if isinstance(record, Genesis):
        return record
    is_block = record.header is not None
    return Outline(record.offset, record.first_command_id, len(record.commands), is_block)


def _check_marks(segment: Segment, offset: int, end: int, marks: tuple[int, int]) -> None:
    """The checkpoint and the progress row are ends of records."""
    checkpoint, evidence = marks
    if offset < checkpoint < end or offset < evidence < end:
        reason = f"the checkpoint or Postgres point into the middle of this record: {marks}"
        raise CorruptionError(segment.path.name, offset, reason)


def _count(scan: Scan, frame: Frame, record: Outline, known: _Known) -> None:
    if frame.offset >= known.marks[0]:
        scan.entries_behind += record.entries
    samples = scan.samples
    if not samples or scan.entries - samples[-1][1] >= _SAMPLE_ENTRIES:
        samples.append((frame.offset, scan.entries))
        while len(samples) > 1 and scan.entries - samples[1][1] >= known.window:
            samples.popleft()
    scan.entries += record.entries
    if record.is_block:
        scan.blocks_end = frame.end
    scan.next_command_id = record.first_command_id + record.entries


def _check_order(
    scan: Scan, segment: Segment, frame: Frame, record: Genesis | Outline, owner: Genesis
) -> Genesis | Outline | Fault:
    """A segment begins with the genesis of this log, and command ids never go back."""
    at_start = frame.offset == segment.start
    if at_start != isinstance(record, Genesis):
        reason = (
            "a segment does not begin with a genesis" if at_start else "a genesis inside a segment"
        )
        return Fault(segment, frame.offset, FaultKind.UNDECODABLE, reason)
    if isinstance(record, Genesis):
        check_same_log(segment, record, owner)
    if record.first_command_id < scan.next_command_id:
        reason = f"command_id {record.first_command_id} where {scan.next_command_id} was next"
        return Fault(segment, frame.offset, FaultKind.UNDECODABLE, reason)
    return record


def _first_kept(
    files: FileSystem,
    first: Segment,
    behind_genesis: int,
    checkpoint: Checkpoint | None,
    evidence: Evidence,
) -> int:
    """The logical offset at which reading begins: everything before it may have been given back."""
    if checkpoint is not None:
        if checkpoint.retained_offset < first.start:
            raise CorruptionError(
                first.path.name,
                first.start,
                f"the log should be kept from offset {checkpoint.retained_offset} on, but it "
                "begins here",
            )
        return max(checkpoint.retained_offset, behind_genesis)
    untouched = evidence.is_told and evidence.offset == 0
    if first.start == 0 and (untouched or _record_at(files, first, behind_genesis)):
        return behind_genesis
    if evidence.offset == 0:
        raise StartRefused(
            "the checkpoint is missing or torn, Postgres can't tell how far it has come, and the "
            f"beginning of the log was given back (the first segment is {first.path.name}); start "
            "again with Postgres up"
        )
    reader = SegmentReader(files, first)
    try:
        found = reader.find_valid_record(behind_genesis)
        start = first.end if found is None else found
        given_back = reader.is_zero(behind_genesis, start)
    finally:
        reader.close()
    if not given_back:
        reason = f"neither a valid record nor given back, up to offset {start}"
        raise CorruptionError(first.path.name, behind_genesis, reason)
    if start > evidence.offset:
        reason = (
            f"nothing is here up to offset {start}; {evidence.source} shows that the log was "
            f"replicated up to {evidence.offset}, and no more than that is ever given back"
        )
        raise CorruptionError(first.path.name, behind_genesis, reason)
    return start


def _record_at(files: FileSystem, segment: Segment, offset: int) -> bool:
    """Whether the log goes on at `offset`, rather than having been given back there."""
    if offset == segment.end:
        return True
    reader = SegmentReader(files, segment)
    try:
        return any(reader.read_at(offset, 4))
    finally:
        reader.close()


def _find_behind(files: FileSystem, segments: list[Segment], index: int, offset: int) -> int | None:
    """Where the log goes on behind a fault. A later segment is only begun on what is durable."""
    reader = SegmentReader(files, segments[index])
    try:
        found = reader.find_valid_record(offset)
    finally:
        reader.close()
    if found is None and index + 1 < len(segments):
        return segments[index + 1].start
    return found
