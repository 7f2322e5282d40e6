"""Whose log a segment is: what its genesis says, and what it has to say (protocol, section 5)."""

from pathlib import Path

from app.errors import CorruptionError, StartRefused
from app.wal.checkpoint import Checkpoint
from app.wal.decoding import decode_raw
from app.wal.files import FileSystem
from app.wal.reader import Fault, SegmentReader, decode_frame
from app.wal.record import FORMAT, Genesis
from app.wal.segments import Segment, list_segments


def read_owner(files: FileSystem, directory: Path) -> Genesis:
    """The genesis of the first kept segment: whose log this is. Raises `CorruptionError`."""
    return read_genesis(files, list_segments(files, directory)[0])[0]


def read_genesis(files: FileSystem, segment: Segment) -> tuple[Genesis, int]:
    """The genesis of a segment and the offset behind it. Raises `CorruptionError`."""
    reader = SegmentReader(files, segment)
    try:
        for frame in reader.frames(segment.start):
            record = decode_frame(segment, frame, decode_raw)
            if isinstance(record, Genesis):
                return record, frame.end
            reason = (
                record.reason if isinstance(record, Fault) else "the first record is no genesis"
            )
            raise CorruptionError(segment.path.name, segment.start, reason)
        reason = reader.fault.reason if reader.fault else "the segment is empty"
        raise CorruptionError(segment.path.name, segment.start, reason)
    finally:
        reader.close()


def check_owner(
    segment: Segment, genesis: Genesis, environment: str, checkpoint: Checkpoint | None
) -> None:
    """The first segment and the checkpoint must be of this environment, and of one log.

    Raises `CorruptionError` and `StartRefused`.
    """
    _check_format(segment, genesis)
    if genesis.environment != environment:
        raise CorruptionError(
            segment.path.name,
            segment.start,
            f"belongs to environment {genesis.environment!r}, not to {environment!r}",
        )
    if checkpoint is None:
        return
    if checkpoint.environment != environment:
        raise StartRefused(
            f"the checkpoint belongs to environment {checkpoint.environment!r}, "
            f"not to {environment!r}"
        )
    if checkpoint.wal_id != genesis.wal_id:
        raise CorruptionError(
            segment.path.name,
            segment.start,
            f"belongs to the log {genesis.wal_id}; the checkpoint to {checkpoint.wal_id}",
        )


def check_same_log(segment: Segment, genesis: Genesis, owner: Genesis) -> None:
    """A later segment must be of the log that the first one is of. Raises `CorruptionError`."""
    _check_format(segment, genesis)
    if genesis.wal_id != owner.wal_id or genesis.environment != owner.environment:
        raise CorruptionError(
            segment.path.name,
            segment.start,
            f"belongs to log {genesis.wal_id} of environment {genesis.environment!r}, the segments "
            f"before it to {owner.wal_id} of {owner.environment!r}",
        )


def _check_format(segment: Segment, genesis: Genesis) -> None:
    if genesis.format != FORMAT:
        reason = f"format {genesis.format}; this version reads {FORMAT}"
        raise CorruptionError(segment.path.name, segment.start, reason)
