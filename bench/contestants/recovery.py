"""What a start does with the log, beside reading the same files and computing their CRC-32C."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from crc32c import crc32c

from app.model.codec import PreparedRequest
from app.settings import WalSync
from app.wal.checkpoint import Checkpoint
from app.wal.dedup import DuplicateIndex
from app.wal.files import FileSystem
from app.wal.log import Log, create_segment
from app.wal.record import Genesis
from app.wal.scan import Evidence, Scan, load_index, scan_log
from app.wal.segments import list_segments
from app.wal.sync import open_syncer
from bench.contestant import Metrics, Round, Row
from bench.entries import stamped
from bench.records import prepared, record_of

_ENVIRONMENT: Final = "bench"
_WAL_ID: Final = "bench"
_SEGMENT_BYTES: Final = 64 << 20
_LOG_BYTES: Final = 256 << 20
_BATCH_ENTRIES: Final = 100
_CHUNK_BYTES: Final = 1 << 20
_DEDUP_WINDOW: Final = 262_144


class Recovery:
    """A log of 256 MiB in records of 100 entries, in the page cache: replicated, or not at all."""

    name = "recovery"

    def missing(self) -> str | None:
        """Nothing can be missing."""
        return None

    def rows(self) -> Sequence[Row]:
        """The ways to read it."""
        return [
            Row("scan", "recovery scan of 256 MiB", self._scan_replicated, warms_up=False),
            Row("scan-backlog", "the same, nothing replicated", self._scan_backlog, warms_up=False),
            Row("index", "scan + index of duplicates", self._scan_and_index, warms_up=False),
            Row("read", "reading the same + CRC-32C", self._read, warms_up=False),
        ]

    def launch(self, scratch: Path) -> None:
        """Write the log."""
        self._files = FileSystem()
        self._directory = scratch / self.name
        self._directory.mkdir()
        _write_log(self._files, self._directory)
        segments = list_segments(self._files, self._directory)
        self._end = segments[-1].end
        self._megabytes = self._end / 1e6

    def ready(self) -> None:
        """At once."""

    def close(self) -> None:
        """Nothing runs."""

    def _scan_replicated(self, _: Round) -> Metrics:
        started = perf_counter()
        self._scan(self._end)
        return self._rate(started)

    def _scan_backlog(self, _: Round) -> Metrics:
        started = perf_counter()
        self._scan(0)
        return self._rate(started)

    def _scan_and_index(self, _: Round) -> Metrics:
        started = perf_counter()
        index = DuplicateIndex(_DEDUP_WINDOW)
        load_index(self._files, self._scan(self._end), index, _DEDUP_WINDOW)
        return self._rate(started)

    def _scan(self, replicated: int) -> Scan:
        checkpoint = Checkpoint(
            wal_id=_WAL_ID, environment=_ENVIRONMENT, wal_offset=replicated, last_command_id=0
        )
        evidence = Evidence(replicated, "the checkpoint", replicated=replicated)
        scan = scan_log(
            self._files, self._directory, _ENVIRONMENT, checkpoint, evidence, _DEDUP_WINDOW
        )
        if scan.fault is not None:
            raise RuntimeError(f"the log is damaged: {scan.fault}")
        return scan

    def _read(self, _: Round) -> Metrics:
        started = perf_counter()
        for segment in list_segments(self._files, self._directory):
            checksum = 0
            with segment.path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    checksum = crc32c(chunk, checksum)
        return self._rate(started)

    def _rate(self, started: float) -> Metrics:
        return {"mb_per_s": self._megabytes / (perf_counter() - started)}


def _write_log(files: FileSystem, directory: Path) -> None:
    genesis = Genesis(
        offset=0, wal_id=_WAL_ID, environment=_ENVIRONMENT, created_ms=0, first_command_id=1
    )
    log = Log(
        files,
        open_syncer(WalSync.FDATASYNC, files, lambda: None),
        wal_id=_WAL_ID,
        environment=_ENVIRONMENT,
        segment_bytes=_SEGMENT_BYTES,
        now_ms=lambda: 0,
        segment=create_segment(files, directory, genesis),
    )
    (request,) = prepared(1, _BATCH_ENTRIES)
    array = bytes(request.array)
    places = [array.index(key.to_bytes(16)) for key in request.keys]
    command_id = 1
    while log.end < _LOG_BYTES:
        fresh = PreparedRequest(request.keys, memoryview(stamped(array, places)))
        offset = log.reserve(fresh.size_bytes + 256, command_id)
        log.append(record_of(fresh, offset, command_id))
        command_id += _BATCH_ENTRIES
    log.sync()
    log.close()
