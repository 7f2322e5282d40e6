"""Reading records from segments, streaming and in bounded memory, up to the first fault.

Recovery reads with it to the end of the log; replication reads up to the offset it was told is
durable.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from app.errors import CorruptionError
from app.wal.files import FileSystem
from app.wal.record import (
    FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    crc_matches,
    unpack_frame,
)
from app.wal.segments import Segment

CHUNK_BYTES: Final = 1 << 20
# How a payload begins: a map of up to 15 keys, the first of them "kind". Every true record has it.
_SIGNATURE: Final = b"\xa4kind"
_SIGNATURE_AT: Final = FRAME_BYTES + 1
_PROBE_BYTES: Final = 64
# How much is checked in search of a valid record: some seconds' worth, and several of the longest.
_SEARCH_BYTES: Final = 4 * MAX_PAYLOAD_BYTES


class FaultKind(Enum):
    """What is wrong at the place where a record should begin."""

    INCOMPLETE = auto()
    ZERO_LENGTH = auto()
    WRONG_CRC = auto()
    UNDECODABLE = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """Where reading stopped, and why."""

    segment: Segment
    offset: int
    kind: FaultKind
    reason: str


class Frame(NamedTuple):
    """One record as it lies in the log: its logical offset, its end, its checked payload."""

    offset: int
    end: int
    payload: memoryview


class Placed(Protocol):
    """A record that says where it lies."""

    @property
    def offset(self) -> int:
        """Its own logical offset."""


Record = TypeVar("Record", bound=Placed)


class SegmentReader:
    """Reads the frames of one segment. `fault` says why it ended before `limit`, if it did."""

    def __init__(self, files: FileSystem, segment: Segment) -> None:
        self._files = files
        self.segment = segment
        self.fault: Fault | None = None
        self._fd = files.open(segment.path)

    def close(self) -> None:
        """Close the file."""
        self._files.close(self._fd)

    def frames(self, offset: int, limit: int | None = None) -> Iterator[Frame]:
        """Frames from the logical `offset` up to `limit` (default: the end of the segment)."""
        end = self.segment.end if limit is None else min(limit, self.segment.end)
        chunk, chunk_at = memoryview(b""), offset
        while offset < end:
            at = offset - chunk_at
            need = FRAME_BYTES
            if len(chunk) - at >= FRAME_BYTES:
                length, crc = unpack_frame(chunk[at : at + FRAME_BYTES])
                need += length
                fault = self._check_length(offset, length, end)
                if fault is not None:
                    self.fault = fault
                    return
            if len(chunk) - at < need:
                if end - offset < need:
                    self.fault = self._incomplete(offset, need, end)
                    return
                chunk, chunk_at = self._read(offset, max(need, CHUNK_BYTES), end), offset
                if len(chunk) < need:
                    self.fault = self._incomplete(offset, need, offset + len(chunk))
                    return
                continue
            payload = chunk[at + FRAME_BYTES : at + need]
            if not crc_matches(payload, crc):
                self.fault = Fault(
                    self.segment, offset, FaultKind.WRONG_CRC, "the CRC-32C does not match"
                )
                return
            yield Frame(offset, offset + need, payload)
            offset += need

    def read_at(self, offset: int, length: int) -> bytes:
        """Up to `length` raw bytes from a logical offset."""
        return self._files.read(self._fd, length, offset - self.segment.start)

    def is_zero(self, offset: int, end: int) -> bool:
        """Whether every byte between two logical offsets is zero."""
        while offset < end:
            chunk = self.read_at(offset, min(CHUNK_BYTES, end - offset))
            if chunk.count(0) < len(chunk) or not chunk:
                return False
            offset += len(chunk)
        return True

    def find_valid_record(self, offset: int) -> int | None:
        """The logical offset of the first valid record at or behind `offset`.

        None when there is none.

        Tries every byte: a candidate is wherever the signature of a payload is found. Records
        hold what clients sent, which may be made to look like many records: when checking them
        would take too long, the next one counts as valid, since that cuts nothing off.
        """
        budget = _SEARCH_BYTES
        overlap = len(_SIGNATURE) - 1
        at = offset
        while at < self.segment.end:
            block = self.read_at(at, CHUNK_BYTES + overlap)
            if not block:
                return None
            found = block.find(_SIGNATURE)
            while found >= 0:
                candidate = at + found - _SIGNATURE_AT
                if candidate >= offset and (length := self._announced(candidate)):
                    budget -= length
                    if budget < 0 or self._crc_is_right(candidate):
                        return candidate
                found = block.find(_SIGNATURE, found + 1)
            at += CHUNK_BYTES
        return None

    def _announced(self, offset: int) -> int:
        """The payload length of what looks like a record at `offset`; 0 when nothing does."""
        probe = self.read_at(offset, _PROBE_BYTES)
        length, _ = unpack_frame(probe[:FRAME_BYTES])
        fits = length <= MAX_PAYLOAD_BYTES and offset + FRAME_BYTES + length <= self.segment.end
        return length if fits and _own_offset(probe) == offset else 0

    def _crc_is_right(self, offset: int) -> bool:
        length, crc = unpack_frame(self.read_at(offset, FRAME_BYTES))
        return crc_matches(self.read_at(offset + FRAME_BYTES, length), crc)

    def _read(self, offset: int, length: int, end: int) -> memoryview:
        return memoryview(self.read_at(offset, min(length, end - offset)))

    def _check_length(self, offset: int, length: int, end: int) -> Fault | None:
        if length == 0:
            return Fault(self.segment, offset, FaultKind.ZERO_LENGTH, "the record's length is zero")
        if offset + FRAME_BYTES + length > end:
            return self._incomplete(offset, FRAME_BYTES + length, end)
        if length > MAX_PAYLOAD_BYTES:
            reason = f"the record's length is {length}; at most {MAX_PAYLOAD_BYTES} is possible"
            return Fault(self.segment, offset, FaultKind.WRONG_CRC, reason)
        return None

    def _incomplete(self, offset: int, need: int, end: int) -> Fault:
        reason = f"a record of {need} bytes is announced, {end - offset} bytes are left"
        return Fault(self.segment, offset, FaultKind.INCOMPLETE, reason)


def decode_frame(
    segment: Segment, frame: Frame, decode: Callable[[memoryview], Record]
) -> Record | Fault:
    """Decode a frame as deep as `decode` does, and check its own offset; a `Fault` if that fails.

    `decode` is one of `app.wal.decoding`, or of its kind.
    """
    try:
        record = decode(frame.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Fault(
            segment, frame.offset, FaultKind.UNDECODABLE, f"the payload does not decode: {error}"
        )
    if record.offset != frame.offset:
        reason = f"the record says that its offset is {record.offset}"
        return Fault(segment, frame.offset, FaultKind.UNDECODABLE, reason)
    return record


def decoded(segment: Segment, frame: Frame, decode: Callable[[memoryview], Record]) -> Record:
    """As `decode_frame`, where a fault is corruption. Raises `CorruptionError`."""
    record = decode_frame(segment, frame, decode)
    if isinstance(record, Fault):
        raise CorruptionError(segment.path.name, record.offset, record.reason)
    return record


def read_frames(
    files: FileSystem, segments: Sequence[Segment], start: int, end: int
) -> Iterator[tuple[Segment, Frame]]:
    """The records between two offsets of a log that was scanned. Raises `CorruptionError`."""
    for segment in segments[segment_of(segments, start) :]:
        reader = SegmentReader(files, segment)
        try:
            for frame in reader.frames(max(start, segment.start), end):
                yield segment, frame
            if reader.fault is not None:
                raise CorruptionError(segment.path.name, reader.fault.offset, reader.fault.reason)
        finally:
            reader.close()


def segment_of(segments: Sequence[Segment], offset: int) -> int:
    """The index of the segment that holds an offset; the last one for the end of the log."""
    for index in range(len(segments) - 1, -1, -1):
        if segments[index].start <= offset:
            return index
    raise ValueError(f"offset {offset} lies before the first segment")


def _own_offset(probe: bytes) -> int | None:
    """The `offset` that the beginning of a record announces, trusting nothing else of it."""
    if len(probe) <= _SIGNATURE_AT or not 0x82 <= probe[FRAME_BYTES] <= 0x8F:
        return None
    at = _SIGNATURE_AT + len(_SIGNATURE)
    kind_length = probe[at] - 0xA0 if 0xA0 <= probe[at] <= 0xBF else -1
    if kind_length < 0:
        return None
    at += 1 + kind_length
    key = b"\xa6offset"
    if probe[at : at + len(key)] != key:
        return None
    value = probe[at + len(key) :]
    sizes = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
    size = sizes.get(value[0], 1) if value else 0
    try:
        number = msgspec.msgpack.decode(value[:size])
    except msgspec.DecodeError:
        return None
    return number if isinstance(number, int) else None
