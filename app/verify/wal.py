"""Blocks from a WAL directory, which is only read, also beside a running service.

Framing is the reader's. Payloads are taken apart with the schemaless `msgpack` package, another
implementation than the one that wrote them, and none of the types that wrote them are asked whether
they are right: what is checked is what lies on the disk, not what the service makes of it.
"""

from collections.abc import AsyncGenerator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import msgpack
import msgspec
from msgspec import Meta, Struct

from app.chain.header import Bytes32, Delegation, Header, Roots
from app.chain.verify import Block, Command, Unverifiable
from app.errors import CorruptionError
from app.model.entry import Count
from app.verify.source import Extent, LooseEvent, Newest
from app.wal.checkpoint import read_checkpoint
from app.wal.files import FileSystem
from app.wal.inspect import segments
from app.wal.reader import CHUNK_BYTES, Fault, FaultKind, Frame, SegmentReader
from app.wal.record import FORMAT
from app.wal.segments import Segment

_CHECKPOINT: Final = "checkpoint.json"
_WAL: Final = "wal"
_LENGTH_BYTES: Final = 4
Converted = TypeVar("Converted")


class _Genesis(Struct, kw_only=True):
    kind: Literal["genesis"]
    offset: Count
    format: int
    wal_id: str
    environment: str
    first_command_id: Count


class _Batch(Struct, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["batch"]
    offset: Count
    first_command_id: Annotated[int, Meta(ge=1)]
    commands: list[dict[str, Any]]
    header: Header | None = None
    roots: Roots | None = None
    block_indices: list[Count] | None = None
    authority: Delegation | None = None


class _Entry(Struct, kw_only=True):
    """What a block covers of an entry."""

    request_uuid: Annotated[bytes, Meta(min_length=16, max_length=16)]
    received_ts_ms: Count
    command_data: bytes
    command_identity_hash: Bytes32 | None = None
    events: list[LooseEvent] = []


class _Received(Struct):
    received_ts_ms: Count


class WalSource:
    """A WAL directory, or the data directory around it.

    It holds what was not given back: `blocks` begins where that is the start that is asked for, or
    earlier. It ends where the log ended when it was opened.
    """

    whole = False

    def __init__(self, directory: Path, files: FileSystem) -> None:
        self._files = files
        if not any(directory.glob("*.wal")) and (directory / _WAL).is_dir():
            directory /= _WAL
        self._segments = segments(directory, files)
        if not self._segments:
            raise Unverifiable(f"{directory}: there is no journal here, no file ends in .wal")
        self._directory = directory
        self._owner: _Genesis | None = None
        self._from_first_record = self._segments[0].start == 0
        self._next_command_id = 0
        self._offset = self._segments[0].start

    @property
    def extent(self) -> Extent:
        """Bytes of the log."""
        first = self._segments[0].start
        return Extent(self._offset - first, self._segments[-1].end - first)

    @property
    def prover(self) -> None:
        """Nobody: there is no need of proofs where the commands themselves are."""

    async def newest(self) -> Newest | None:
        """No record says that it is the last."""
        return None

    async def authorities(self) -> list[Delegation]:
        """None: a delegation is in the record of the first block that it covers."""
        return []

    async def blocks(self, start: int) -> AsyncGenerator[Block, None]:
        """The blocks from height `start` on, behind the one before them, if it is there."""
        begun = False
        for block in self._blocks():
            height = block.header.batch_seq
            if begun or start - 1 <= height <= start or self._is_journals_first(height, start):
                begun = True
                yield block
            elif height > start:
                raise Unverifiable(
                    f"the first block that the log still holds is {height}, not {start}: what was "
                    "before it has been given back, or is in an earlier log; verify the URL or "
                    "the database, or begin behind a block that you trust"
                )

    def _is_journals_first(self, height: int, start: int) -> bool:
        """Whether the log begins where the journal does, so that a block before this is missing."""
        if height < start or self._owner is None:
            return False
        return self._from_first_record and self._owner.first_command_id == 1

    def _blocks(self) -> Iterator[Block]:
        try:
            end = self._segments[0].start
            for segment in self._segments:
                if segment.start != end:
                    reason = f"the log goes on at {segment.start} in {segment.path.name}"
                    raise CorruptionError(_WAL, end, reason)
                end = segment.end
                for frame in self._frames(segment):
                    batch = _converted(segment, frame, _unpacked(segment, frame), _Batch)
                    if batch.first_command_id < self._next_command_id:
                        reason = f"command_id {batch.first_command_id} was given before"
                        raise CorruptionError(segment.path.name, frame.offset, reason)
                    self._next_command_id = batch.first_command_id + len(batch.commands)
                    block = _block(segment, frame, batch)
                    self._offset = frame.end
                    if block is not None:
                        yield block
        except OSError as error:
            raise Unverifiable(f"{self._directory}: {error}") from error

    def _frames(self, segment: Segment) -> Iterator[Frame]:
        """The batches of a segment, those that lie behind what was given back."""
        offset = self._behind_genesis(segment)
        end = segment.end
        while offset < end:
            reader = SegmentReader(self._files, segment)
            try:
                for frame in reader.frames(offset):
                    yield frame
                    offset = frame.end
                    if offset >= end:
                        break
                if reader.fault is not None:
                    segment = self._grown(reader, reader.fault)
            finally:
                reader.close()

    def _behind_genesis(self, segment: Segment) -> int:
        """Check whose segment this is; return where its first batch lies."""
        reader = SegmentReader(self._files, segment)
        try:
            frame = next(reader.frames(segment.start), None)
            if frame is None:
                reason = reader.fault.reason if reader.fault else "the segment is empty"
                raise CorruptionError(segment.path.name, segment.start, reason)
            genesis = _converted(segment, frame, _unpacked(segment, frame), _Genesis)
            self._check_owner(segment, genesis)
            if segment is self._segments[0]:
                return self._behind_given_back(reader, frame.end)
            return frame.end
        finally:
            reader.close()

    def _check_owner(self, segment: Segment, genesis: _Genesis) -> None:
        if genesis.format != FORMAT:
            raise Unverifiable(
                f"{segment.path.name}: format {genesis.format}; this version reads {FORMAT}"
            )
        owner = self._owner = self._owner or genesis
        if (genesis.wal_id, genesis.environment) != (owner.wal_id, owner.environment):
            reason = (
                f"belongs to log {genesis.wal_id} of environment {genesis.environment!r}, the "
                f"segments before it to {owner.wal_id} of {owner.environment!r}"
            )
            raise CorruptionError(segment.path.name, segment.start, reason)

    def _behind_given_back(self, reader: SegmentReader, offset: int) -> int:
        """Where the records of the first segment begin: what was given back reads as zeros."""
        segment = reader.segment
        if offset == segment.end or any(reader.read_at(offset, _LENGTH_BYTES)):
            return offset
        self._from_first_record = False
        found = reader.find_valid_record(offset)
        resume = segment.end if found is None else found
        while offset < resume:
            chunk = reader.read_at(offset, min(CHUNK_BYTES, resume - offset))
            if not chunk or any(chunk):
                reason = "neither a record nor the zeros of what was given back"
                raise CorruptionError(segment.path.name, offset, reason)
            offset += len(chunk)
        return resume

    def _grown(self, reader: SegmentReader, fault: Fault) -> Segment:
        """Return the segment as it is now, if its last record was just being written."""
        segment, offset = reader.segment, fault.offset
        checkpoint = read_checkpoint(self._files, self._directory.parent / _CHECKPOINT)
        if checkpoint is not None and checkpoint.retained_offset > offset:
            raise Unverifiable(f"offset {offset} of the log was given back while it was being read")
        if fault.kind is FaultKind.INCOMPLETE and segment.start == self._segments[-1].start:
            size = self._files.size_of(segment.path)
            if size > segment.size:
                return Segment(segment.path, segment.start, size)
            if reader.find_valid_record(offset + 1) is None:
                raise Unverifiable(
                    f"the last record of the log is incomplete ({segment.path.name}, offset "
                    f"{offset}); all blocks before it are right"
                )
        raise CorruptionError(segment.path.name, offset, fault.reason)


def _unpacked(segment: Segment, frame: Frame) -> Any:
    """Take a payload apart. Raises `CorruptionError`."""
    try:
        record = msgpack.unpackb(frame.payload, strict_map_key=False, object_pairs_hook=_unique)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        reason = f"the payload does not decode: {error!r:.200}"
        raise CorruptionError(segment.path.name, frame.offset, reason) from None
    if not isinstance(record, dict) or record.get("offset") != frame.offset:
        reason = "this is no record, or not one of this place"
        raise CorruptionError(segment.path.name, frame.offset, reason)
    return record


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Refuse a key that comes twice: two readers may take different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice in a map")
    return found


def _converted(segment: Segment, frame: Frame, value: Any, kind: type[Converted]) -> Converted:
    """Check the shape of what was unpacked. Raises `CorruptionError`."""
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, UnicodeError) as error:
        raise CorruptionError(segment.path.name, frame.offset, str(error)) from None


def _block(segment: Segment, frame: Frame, batch: _Batch) -> Block | None:
    """The block of a batch, if it is one. Raises `CorruptionError`."""
    header, roots, indices = batch.header, batch.roots, batch.block_indices
    if header is None and roots is None and indices is None and batch.authority is None:
        return None
    if header is None or roots is None or indices is None:
        reason = "header, roots and block_indices are not all there"
        raise CorruptionError(segment.path.name, frame.offset, reason)
    if any(later <= index for index, later in pairwise(indices)) or (
        indices and indices[-1] >= len(batch.commands)
    ):
        reason = f"block_indices are not increasing and below {len(batch.commands)}"
        raise CorruptionError(segment.path.name, frame.offset, reason)
    commands = []
    for index in indices:
        entry = _converted(segment, frame, batch.commands[index], _Entry)
        commands.append(
            Command(
                command_id=batch.first_command_id + index,
                request_uuid=entry.request_uuid,
                command_data=entry.command_data,
                sent_identity=entry.command_identity_hash,
                events=[*entry.events],
            )
        )
    newest = batch.commands[-1] if batch.commands else {}
    received = _converted(segment, frame, newest, _Received)
    return Block(
        header=header,
        roots=roots,
        commands=commands,
        entries_timestamp=received.received_ts_ms,
        authority=batch.authority,
    )
