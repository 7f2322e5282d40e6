"""What is in a WAL directory: segments, records, given-back regions and damage, read-only.

Payloads are taken apart with the schemaless `msgpack` package, so that what is shown does not
depend on the types that wrote the log. Damage is reported for the place it is at, never raised. All
of it works beside a running service: a record that is just being written then looks incomplete.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack

from app.errors import OperatingError
from app.wal.files import FileSystem
from app.wal.reader import CHUNK_BYTES, SegmentReader
from app.wal.record import FRAME_BYTES, MAX_PAYLOAD_BYTES, crc_matches, unpack_frame
from app.wal.segments import Segment, segment_start

DAMAGE: Final = "damage"
ZEROS: Final = "zeros"
_LENGTH_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """A stretch of a segment: its logical offset, its length in bytes, and what is there.

    `kind` is the kind of a record ("genesis", "batch"), "zeros" for a region that was given back,
    or "damage", with `detail` saying why.
    """

    offset: int
    length: int
    kind: str
    detail: str = ""
    first_command_id: int | None = None
    commands: int = 0


@dataclass(slots=True)
class Totals:
    """Sums over the findings of a segment or of a log; ids are null without any command."""

    records: int = 0
    commands: int = 0
    first_command_id: int | None = None
    last_command_id: int | None = None
    zero_bytes: int = 0
    damages: int = 0
    damaged_bytes: int = 0

    def add(self, finding: Finding) -> None:
        """Count one finding."""
        if finding.kind == ZEROS:
            self.zero_bytes += finding.length
            return
        if finding.kind == DAMAGE:
            self.damages += 1
            self.damaged_bytes += finding.length
            return
        self.records += 1
        self.commands += finding.commands
        if finding.commands and finding.first_command_id is not None:
            if self.first_command_id is None:
                self.first_command_id = finding.first_command_id
            self.last_command_id = finding.first_command_id + finding.commands - 1


def segments(directory: Path, files: FileSystem) -> list[Segment]:
    """The segments of a WAL directory, in order, whether or not their offsets meet.

    Raises `OperatingError` when the directory can't be listed.
    """
    found = []
    try:
        for name in files.names(directory):
            start = segment_start(name)
            if start is not None:
                path = directory / name
                found.append(Segment(path, start, files.size_of(path)))
    except OSError as error:
        raise OperatingError(f"{directory}: {error.strerror}") from error
    return sorted(found, key=lambda segment: segment.start)


def findings(directory: Path, files: FileSystem) -> Iterator[tuple[Segment, Finding]]:
    """Everything in the log, from its first byte to its last, in order."""
    end: int | None = None
    found = segments(directory, files)
    for segment in found:
        if end is not None and segment.start != end:
            missing = max(segment.start - end, 0)
            detail = f"the segment before it ends at {end}, this one begins at {segment.start}"
            yield segment, Finding(min(end, segment.start), missing, DAMAGE, detail)
        end = segment.end
        try:
            reader = SegmentReader(files, segment)
        except OSError as error:
            detail = f"unreadable: {error.strerror}"
            yield segment, Finding(segment.start, segment.size, DAMAGE, detail)
            continue
        try:
            for finding in _findings(reader, oldest=segment is found[0]):
                yield segment, finding
        finally:
            reader.close()


def _findings(reader: SegmentReader, *, oldest: bool) -> Iterator[Finding]:
    offset, end = reader.segment.start, reader.segment.end
    behind = ""
    while offset < end:
        try:
            finding = _stretch_at(reader, offset)
        except OSError as error:
            yield Finding(offset, end - offset, DAMAGE, f"unreadable: {error.strerror}")
            return
        # Only the oldest segment is hole-punched, from its genesis record on: zeros anywhere else
        # were records once.
        if finding.kind == ZEROS and not (oldest and behind == "genesis"):
            detail = "zeros where a record should begin"
            finding = Finding(offset, finding.length, DAMAGE, detail)
        yield finding
        behind = finding.kind
        offset += finding.length


def _stretch_at(reader: SegmentReader, offset: int) -> Finding:
    """The record at `offset`, else the zeros, else the damage up to the next valid record."""
    record = _record_at(reader, offset)
    if record.kind != DAMAGE:
        return record
    data_at = _first_data(reader, offset)
    if data_at - offset >= FRAME_BYTES or data_at == reader.segment.end:
        # A length may begin with zeros itself: they belong to the record then.
        for start in range(data_at - _LENGTH_BYTES + 1, data_at):
            if start > offset and _record_at(reader, start).kind != DAMAGE:
                return Finding(offset, start - offset, ZEROS)
        return Finding(offset, data_at - offset, ZEROS)
    resume = reader.find_valid_record(offset + 1) or reader.segment.end
    return Finding(offset, resume - offset, DAMAGE, record.detail)


def _record_at(reader: SegmentReader, offset: int) -> Finding:
    """The record at `offset`, or a finding of kind "damage" that says why there is none."""
    left = reader.segment.end - offset

    def damage(detail: str) -> Finding:
        return Finding(offset, left, DAMAGE, detail)

    header = reader.read_at(offset, FRAME_BYTES)
    if left < FRAME_BYTES or len(header) < FRAME_BYTES:
        return damage(f"{left} bytes are too few for a record")
    length, crc = unpack_frame(header)
    if length == 0:
        return damage("a record of zero length")
    if length > MAX_PAYLOAD_BYTES or FRAME_BYTES + length > left:
        return damage(f"a payload of {length} bytes is announced, {left - FRAME_BYTES} are left")
    payload = reader.read_at(offset + FRAME_BYTES, length)
    if not crc_matches(payload, crc):
        return damage("the CRC-32C does not match")
    try:
        record = msgpack.unpackb(payload, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        return damage(f"the CRC-32C is right, the payload does not decode: {error!r:.200}")
    if not isinstance(record, dict) or list(record)[:2] != ["kind", "offset"]:
        return damage("the CRC-32C is right, but this is no map that begins with kind and offset")
    if record["offset"] != offset:
        own = f"{record['offset']!r:.40}"
        return damage(f"the CRC-32C is right, but the record's own offset is {own}")
    return _described(offset, FRAME_BYTES + length, record)


def _described(offset: int, length: int, record: dict[Any, Any]) -> Finding:
    commands = record.get("commands")
    first = record.get("first_command_id")
    detail = ""
    if record["kind"] == "genesis":
        detail = f"wal_id {record.get('wal_id')}, environment {record.get('environment')}"
    elif record.get("header") is not None:
        detail = "block"
    return Finding(
        offset=offset,
        length=length,
        kind=str(record["kind"]),
        detail=detail,
        first_command_id=first if isinstance(first, int) else None,
        commands=len(commands) if isinstance(commands, list) else 0,
    )


def _first_data(reader: SegmentReader, offset: int) -> int:
    """Where the first byte that is not zero is, from `offset` on; the segment's end without one."""
    end = reader.segment.end
    while offset < end:
        chunk = reader.read_at(offset, min(CHUNK_BYTES, end - offset))
        if not chunk:
            return end
        data = chunk.lstrip(b"\0")
        offset += len(chunk) - len(data)
        if data:
            return offset
    return end
