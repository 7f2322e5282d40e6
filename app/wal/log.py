"""The writing end of the log: appends framed records to the last segment and syncs them.

One thread owns it. Nothing here retries: a failed write or sync, except for want of room, is final.
That a new segment can't even be opened for want of a file descriptor is none.
"""

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Raw

from app.errors import CorruptionError, DiskFull, Unavailable, WalFailed
from app.wal.decoding import decode_raw
from app.wal.files import FileSystem, UnsyncedName, open_new_file
from app.wal.reader import Fault, SegmentReader, decode_frame, segment_of
from app.wal.record import Genesis, Part, RawBatch, encode_record
from app.wal.segments import Segment, list_segments, segment_name
from app.wal.sync import Syncer

_log = logging.getLogger(__name__)

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


class Log:
    """The last segment of a WAL, open for appending.

    `end` is the logical offset behind the last record that was appended. `append` and `sync` raise
    `WalFailed` when the process must stop, `append` and `reserve` raise `DiskFull` when it may go
    on, and so does `reserve` with `Unavailable`.
    """

    def __init__(
        self,
        files: FileSystem,
        syncer: Syncer,
        *,
        wal_id: str,
        environment: str,
        segment_bytes: int,
        now_ms: Callable[[], int],
        segment: Segment,
    ) -> None:
        self.wal_id = wal_id
        self._files = files
        self._syncer = syncer
        self._environment = environment
        self._segment_bytes = segment_bytes
        self._now_ms = now_ms
        self.is_held_back: Callable[[], bool] = lambda: False
        """Whether what room there is on the volume is needed to give the log back."""
        self.kept_from: Callable[[], int] = lambda: 0
        """The offset before which the log may have been given back."""
        self._older = {
            each: files.identity_of(each.path)
            for each in list_segments(files, segment.path.parent)
            if each.start < segment.start
        }
        self._lacks_descriptors = False
        self._go_on_in(segment, self._opened(segment.path))

    @property
    def syncer_name(self) -> str:
        """How it is synced."""
        return self._syncer.name

    def reserve(self, size: int, first_command_id: int) -> int:
        """The offset at which a record of about `size` bytes will lie.

        Begins a new segment for it if need be.
        """
        if self.is_held_back():
            raise DiskFull("the volume of the WAL is full: what room there is gives the log back")
        filled = self.end - self._start
        if self._has_records and filled + size > self._segment_bytes:
            self._roll(first_command_id)
        return self.end

    def append(self, *parts: Part) -> int:
        """Write a framed record, in parts, at `end`; returns its own end.

        It is not durable before `sync`.
        """
        at = self.end - self._start
        size = 0
        try:
            for part in parts:
                self._files.write(self._fd, part, at + size)
                size += len(part)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise WalFailed(
                    f"writing {self._path.name} at {self.end} failed: {error}"
                ) from error
            self._cut(at)
            # Or the partial record could come back behind the beginning of the next segment.
            self.sync()
            raise DiskFull(
                f"no room for a record of {sum(map(len, parts))} bytes on the volume of the WAL"
            ) from error
        self.end += size
        self._has_records = True
        return self.end

    def sync(self) -> None:
        """Make all that was appended durable, and check that the file still is the log's."""
        try:
            self._syncer.sync(self._fd)
        except OSError as error:
            raise WalFailed(f"syncing {self._path.name} failed: {error}") from error
        try:
            there = self._files.identity_of(self._path)
        except OSError as error:
            raise WalFailed(_gone(self._path, "unlinked")) from error
        if there != self._identity:
            raise WalFailed(_gone(self._path, "replaced"))

    def read_commands(self, offset: int) -> list[Raw]:
        """The commands of the synced batch at `offset`, as they lie in the log.

        Raises `OSError` when it can't be read now, `CorruptionError` when it is not there any more.
        """
        segments = list_segments(self._files, self._path.parent)
        segment = segments[segment_of(segments, offset)]
        reader = SegmentReader(self._files, segment)
        try:
            frame = next(reader.frames(offset), None)
            record = reader.fault if frame is None else decode_frame(segment, frame, decode_raw)
        finally:
            reader.close()
        if isinstance(record, RawBatch):
            return record.commands
        reason = record.reason if isinstance(record, Fault) else "no batch is here"
        raise CorruptionError(segment.path.name, offset, reason)

    def close(self) -> None:
        """Close the file; what was synced stays."""
        self._files.close(self._fd)
        self._syncer.close()

    def _opened(self, path: Path) -> int:
        try:
            return self._files.open(path, write=True)
        except OSError as error:
            raise WalFailed(f"opening {path.name} failed: {error}") from error

    def _go_on_in(self, segment: Segment, fd: int) -> None:
        self._path = segment.path
        self._start = segment.start
        self._fd = fd
        self._identity = self._files.identity(self._fd)
        self.end = segment.end
        self._has_records = True
        if segment.size < self._segment_bytes:
            allocate(self._files, self._fd, segment.size, self._segment_bytes - segment.size)

    def _roll(self, first_command_id: int) -> None:
        """Go on in a new segment, which is durable with its genesis before it is used."""
        self._check_older()
        directory = self._path.parent
        try:
            segment, fd = _begin_segment(
                self._files,
                directory,
                Genesis(
                    offset=self.end,
                    wal_id=self.wal_id,
                    environment=self._environment,
                    created_ms=self._now_ms(),
                    first_command_id=first_command_id,
                ),
            )
        except OSError as error:
            raise self._not_begun(error) from error
        self._lacks_descriptors = False
        self._cut(self.end - self._start)
        self._files.close(self._fd)
        self._older[Segment(self._path, self._start, self.end - self._start)] = self._identity
        self._go_on_in(segment, fd)
        self._has_records = False

    def _not_begun(self, error: OSError) -> Exception:
        """What is to be raised when the next segment could not begin."""
        # Once it has its name, what failed is a sync, and the one before must not grow any more.
        if not isinstance(error, UnsyncedName):
            if error.errno in NO_ROOM:
                return DiskFull("no room for a new segment on the volume of the WAL")
            if error.errno in _NO_DESCRIPTORS:
                reason = f"no file descriptors are left for a new segment: {error.strerror}"
                if not self._lacks_descriptors:
                    _log.error("entries are refused, %s", reason)
                self._lacks_descriptors = True
                return Unavailable(reason)
        return WalFailed(f"beginning the segment at {self.end} failed: {error}")

    def _check_older(self) -> None:
        """Check that the segments which are still needed are the ones that were written.

        `sync` looks at the last one alone; what was acknowledged in another can be lost as well.
        """
        for segment, identity in list(self._older.items()):
            try:
                there = self._files.identity_of(segment.path)
            except FileNotFoundError:
                if segment.end > self.kept_from():
                    raise WalFailed(_gone(segment.path, "unlinked")) from None
                del self._older[segment]
                continue
            if there != identity:
                raise WalFailed(_gone(segment.path, "replaced"))

    def _cut(self, size: int) -> None:
        """Cut the segment to what it holds: a partial record, or what was reserved and not used."""
        try:
            self._files.truncate(self._fd, size)
        except OSError as error:
            raise WalFailed(f"cutting {self._path.name} to {size} bytes failed: {error}") from error


def _gone(path: Path, how: str) -> str:
    return f"{path.name} was {how} under the running service"


def create_segment(files: FileSystem, directory: Path, genesis: Genesis) -> Segment:
    """Create the segment that begins with `genesis`, durable under its name. Raises `OSError`."""
    segment, fd = _begin_segment(files, directory, genesis)
    files.close(fd)
    return segment


def _begin_segment(files: FileSystem, directory: Path, genesis: Genesis) -> tuple[Segment, int]:
    path = directory / segment_name(genesis.offset)
    record = encode_record(genesis)
    fd = open_new_file(files, path, record)
    return Segment(path, genesis.offset, len(record)), fd


def allocate(files: FileSystem, fd: int, offset: int, length: int) -> None:
    """Reserve blocks ahead, so that appending need not allocate; going on without is fine."""
    try:
        files.allocate(fd, offset, length)
    except OSError as error:
        _log.warning("can't preallocate %d bytes of the log, going on without: %s", length, error)
