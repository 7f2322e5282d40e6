"""The content of blocks out of the log, for as long as the log has it.

No index of the log's blocks is kept on disk. A segment's first record says which `command_id` comes
next, so the segment that holds a block is found by bisection. It is read once, as far as it was
asked for, and where its blocks are is remembered for a few segments.
"""

import asyncio
import logging
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec import Raw

from app.chain.store import StoredBlock
from app.errors import CorruptionError
from app.model.entry import Entry
from app.wal.decoding import decode_command, decode_raw
from app.wal.files import FileSystem
from app.wal.reader import SegmentReader
from app.wal.record import Genesis, RawBatch, read_outline
from app.wal.segments import Segment, list_segments

_log = logging.getLogger(__name__)

_REMEMBERED_SEGMENTS: Final = 8


class LoggedBlocks:
    """Finds blocks in the segments of a directory.

    `retained` gives the offset before which the log has been given back.
    """

    def __init__(self, files: FileSystem, directory: Path, retained: Callable[[], int]) -> None:
        self._files = files
        self._directory = directory
        self._retained = retained
        # By the start of their segment.
        self._first_command_ids: dict[int, int] = {}
        self._places: OrderedDict[int, _Places] = OrderedDict()
        # One look at a time: each takes a thread of a pool that others need too.
        self._looking = asyncio.Lock()

    async def entries(self, block: StoredBlock, end: int) -> "LoggedEntries | None":
        """The block commands of a block, by `command_id`; None where the log has them no more.

        `end` is the end of a durable record: the block's own, or a later one.
        """
        async with self._looking:
            look = asyncio.ensure_future(asyncio.to_thread(self._find, block, end))
            try:
                return await asyncio.shield(look)
            except asyncio.CancelledError:
                # The thread goes on, and what it reads is held: so is the lock.
                await asyncio.wait({look})
                look.exception()  # nobody waits for it: it would be logged as one nobody saw
                raise
            except (OSError, CorruptionError, ValueError) as error:
                # It may be given back at this very moment. Damage is for recovery to judge.
                _log.info("block %d can't be read from the log: %s", block.header.batch_seq, error)
                return None

    def _find(self, block: StoredBlock, end: int) -> "LoggedEntries | None":
        segment = self._segment_of(block.first_command_id)
        if segment is None:
            return None
        reader = SegmentReader(self._files, segment)
        try:
            places = self._places_in(segment)
            offset = places.find(reader, block.header.batch_seq, self._retained(), end)
            frame = None if offset is None else next(reader.frames(offset, end), None)
        finally:
            reader.close()
        if frame is None:
            return None
        batch = decode_raw(frame.payload)
        if not isinstance(batch, RawBatch) or batch.header != block.header:
            return None
        return LoggedEntries(batch) if batch.block_indices else None

    def _segment_of(self, command_id: int) -> Segment | None:
        segments = list_segments(self._files, self._directory)
        known = self._first_command_ids
        for start in known.keys() - {segment.start for segment in segments}:
            del known[start]
        after = bisect_right(segments, command_id, key=self._first_command_id)
        return segments[after - 1] if after else None

    def _first_command_id(self, segment: Segment) -> int:
        known = self._first_command_ids.get(segment.start)
        if known is None:
            reader = SegmentReader(self._files, segment)
            try:
                genesis = decode_raw(next(reader.frames(segment.start)).payload)
            finally:
                reader.close()
            if not isinstance(genesis, Genesis):
                raise CorruptionError(segment.path.name, segment.start, "no genesis record")
            known = self._first_command_ids[segment.start] = genesis.first_command_id
        return known

    def _places_in(self, segment: Segment) -> "_Places":
        places = self._places.pop(segment.start, None) or _Places(segment.start)
        self._places[segment.start] = places
        if len(self._places) > _REMEMBERED_SEGMENTS:
            self._places.popitem(last=False)
        return places


class LoggedEntries(Mapping[int, Entry]):
    """A record's block commands by `command_id`, each decoded when it is asked for.

    To decode all of a large one at once would keep the interpreter from everything else. What does
    not decode raises `msgspec.DecodeError`.
    """

    def __init__(self, batch: RawBatch) -> None:
        first, indices = batch.first_command_id, batch.block_indices or ()
        self._commands: dict[int, Raw] = {first + at: batch.commands[at] for at in indices}

    def __getitem__(self, command_id: int) -> Entry:
        return decode_command(self._commands[command_id])

    def __contains__(self, command_id: object) -> bool:
        return command_id in self._commands

    def __iter__(self) -> Iterator[int]:
        return iter(self._commands)

    def __len__(self) -> int:
        return len(self._commands)


class _Places:
    """Where the records of a segment's blocks begin, as far as the segment has been read."""

    def __init__(self, start: int) -> None:
        self._read_to = start
        self._first_height = 0
        self._offsets = array("Q")

    def find(self, reader: SegmentReader, height: int, retained: int, end: int) -> int | None:
        """The offset of a block's record; None when it is not in what is left of the segment."""
        if (at := height - self._first_height) < len(self._offsets):
            return self._offsets[at] if at >= 0 and self._offsets[at] >= retained else None
        for frame in reader.frames(max(self._read_to, retained), end):
            self._read_to = frame.end
            outline = read_outline(frame.payload)
            if outline is not None and not outline.is_block:
                continue
            record = decode_raw(frame.payload)
            if not isinstance(record, RawBatch) or record.header is None:
                continue
            found = record.header.batch_seq
            if found != self._first_height + len(self._offsets):
                # The first, or the first behind what was given back unread.
                self._first_height, self._offsets = found, array("Q")
            self._offsets.append(frame.offset)
            if found >= height:
                return frame.offset if found == height else None
        return None
