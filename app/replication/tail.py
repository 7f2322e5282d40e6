"""Following the log from an offset.

Decoded records, in chunks, never past what is known to be durable.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from app.errors import CorruptionError, ReplicationRefused, WalUnreadable
from app.wal.decoding import decode_record
from app.wal.files import FileSystem
from app.wal.reader import SegmentReader
from app.wal.record import Batch
from app.wal.segments import list_segments, segment_start

_MAX_CHUNK_BYTES: Final = 16 << 20


class Chunk(NamedTuple):
    """Whole records, and the logical offset behind the last of them."""

    batches: list[Batch]
    entries: int
    end: int


class Tail:
    """Reads forward from `offset`.

    Raises `ReplicationRefused` when the log does not have it any more, and `WalUnreadable`.
    """

    def __init__(self, files: FileSystem, directory: Path, offset: int) -> None:
        self.offset = offset
        self._files = files
        self._directory = directory
        self._reader: SegmentReader | None = None

    def read(self, durable: int, max_entries: int) -> Chunk:
        """The next records that end at or before `durable`.

        About `max_entries`, a record never split.
        """
        batches: list[Batch] = []
        entries = size = 0
        while self.offset < durable and entries < max_entries and size < _MAX_CHUNK_BYTES:
            reader = self._segment_reader(durable)
            with reading(reader.segment.path):
                for frame in reader.frames(self.offset, durable):
                    record = _decode(reader, frame.offset, frame.payload)
                    if isinstance(record, Batch):
                        batches.append(record)
                        entries += len(record.commands)
                        size += len(frame.payload)
                    self.offset = frame.end
                    if entries >= max_entries or size >= _MAX_CHUNK_BYTES:
                        break
            if reader.fault is not None:
                raise self._fault(reader)
        return Chunk(batches, entries, self.offset)

    def close(self) -> None:
        """Close the segment that is open."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _segment_reader(self, durable: int) -> SegmentReader:
        """A reader for the segment that holds `offset`, as long as it is by now."""
        if self._reader is not None:
            segment = self._reader.segment
            if segment.start <= self.offset < segment.end and durable <= segment.end:
                return self._reader
            self.close()
        with reading(self._directory):
            segments = list_segments(self._files, self._directory)
        for segment in reversed(segments):
            if segment.start <= self.offset < segment.end:
                with reading(segment.path):
                    self._reader = SegmentReader(self._files, segment)
                return self._reader
        raise ReplicationRefused(missing(self.offset, self._first_kept()))

    def _first_kept(self) -> int:
        with reading(self._directory):
            names = self._files.names(self._directory)
        starts = [segment_start(name) for name in names]
        return min((start for start in starts if start is not None), default=0)

    def _fault(self, reader: SegmentReader) -> Exception:
        fault = reader.fault
        if fault is None:
            return CorruptionError(reader.segment.path.name, self.offset, "no fault")
        return CorruptionError(reader.segment.path.name, fault.offset, fault.reason)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the kernel, which do not always name the file, into `WalUnreadable`."""
    try:
        yield
    except OSError as error:
        raise WalUnreadable(f"{path.name} can't be read: {error.strerror or error}") from error


def missing(offset: int, kept_from: int) -> str:
    """Say which range of the log is gone."""
    return (
        f"the log from offset {offset} to {kept_from} was given back and Postgres does not have "
        "it: restore a newer backup of the database"
    )


def _decode(reader: SegmentReader, offset: int, payload: memoryview) -> object:
    try:
        return decode_record(payload)
    except msgspec.DecodeError as error:
        reason = f"the payload does not decode: {error}"
        raise CorruptionError(reader.segment.path.name, offset, reason) from error
