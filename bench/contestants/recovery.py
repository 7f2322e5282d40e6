"""The scan at start-up, beside reading the same files sequentially and computing their CRC-32C."""

from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from crc32c import crc32c

from app.settings import WalSync
from app.wal.files import FileSystem
from app.wal.log import Log, create_segment
from app.wal.record import Genesis
from app.wal.scan import Evidence, scan_log
from app.wal.segments import list_segments
from app.wal.sync import open_syncer
from bench.contestant import Metrics, Round, Row
from bench.records import prepared, record_of

_ENVIRONMENT: Final = "bench"
_WAL_ID: Final = "bench"
_SEGMENT_BYTES: Final = 64 << 20
_LOG_BYTES: Final = 256 << 20
_BATCH_ENTRIES: Final = 100
_CHUNK_BYTES: Final = 1 << 20
_DEDUP_WINDOW: Final = 262_144


class Recovery:
    """A log of 256 MiB in records of 100 entries, in the page cache."""

    name = "recovery"

    def missing(self) -> str | None:
        """Nothing can be missing."""
        return None

    def rows(self) -> Sequence[Row]:
        """Both ways to read it."""
        return [
            Row("scan", "recovery scan of 256 MiB", self._scan, warms_up=False),
            Row("read", "reading the same + CRC-32C", self._read, warms_up=False),
        ]

    def launch(self, scratch: Path) -> None:
        """Write the log."""
        self._files = FileSystem()
        self._directory = scratch / self.name
        self._directory.mkdir()
        _write_log(self._files, self._directory)
        segments = list_segments(self._files, self._directory)
        self._megabytes = sum(segment.size for segment in segments) / 1e6

    def ready(self) -> None:
        """At once."""

    def close(self) -> None:
        """Nothing runs."""

    def _scan(self, _: Round) -> Metrics:
        started = perf_counter()
        scan = scan_log(
            self._files, self._directory, _ENVIRONMENT, None, Evidence(0, "nothing"), _DEDUP_WINDOW
        )
        seconds = perf_counter() - started
        if scan.fault is not None:
            raise RuntimeError(f"the log is damaged: {scan.fault}")
        return {"mb_per_s": self._megabytes / seconds}

    def _read(self, _: Round) -> Metrics:
        started = perf_counter()
        for segment in list_segments(self._files, self._directory):
            checksum = 0
            with segment.path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    checksum = crc32c(chunk, checksum)
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
    requests = prepared(64, _BATCH_ENTRIES)
    command_id = 1
    while log.end < _LOG_BYTES:
        request = requests[command_id % len(requests)]
        offset = log.reserve(request.size_bytes + 256, command_id)
        log.append(record_of(request, offset, command_id))
        command_id += _BATCH_ENTRIES
    log.sync()
    log.close()
