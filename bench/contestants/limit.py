"""The limit: bare `pwrite` and `fdatasync` of the records that the service would write.

One batch a sync, no server, into a file that is preallocated as a segment is.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from app.wal.files import FileSystem
from app.wal.log import allocate
from bench.contestant import Row, cycled, loaded
from bench.load import Job, Prepared
from bench.records import prepared, record_of

_SEGMENT_BYTES: Final = 64 << 20
_RECORDS: Final = 64


class LimitDriver:
    """Writes and syncs one record a send, into the file `job.target`."""

    @asynccontextmanager
    async def connect(self, job: Job) -> AsyncIterator[Prepared]:
        """A new file, and another one when it is full."""
        files, path = FileSystem(), Path(job.target)
        fd, at = _new(files, path), 0

        async def send(record: bytearray) -> None:
            nonlocal fd, at
            if at + len(record) > _SEGMENT_BYTES:
                os.close(fd)
                fd, at = _new(files, path), 0
            at += os.pwrite(fd, record, at)
            os.fdatasync(fd)

        try:
            yield Prepared(cycled(_records(job.entries), job.sends), [send])
        finally:
            os.close(fd)
            path.unlink()  # noqa: ASYNC240 - one step at a time is what is measured


def _records(entries: int) -> list[bytearray]:
    """A few, to be written over and over: the disk does not care."""
    return [record_of(request, 1 << 20, 1 << 20) for request in prepared(_RECORDS, entries)]


def _new(files: FileSystem, path: Path) -> int:
    path.unlink(missing_ok=True)
    fd = files.create(path)
    allocate(files, fd, 0, _SEGMENT_BYTES)
    files.sync_data(fd)
    return fd


class Limit:
    """No server at all."""

    name = "limit"

    def missing(self) -> str | None:
        """Nothing can be missing."""
        return None

    def rows(self) -> Sequence[Row]:
        """Records of 1 and of 100 entries."""
        return [
            Row("limit-1", "limit: write and sync, 1 entry", loaded(lambda: self._job(1))),
            Row(
                "limit-100",
                "limit: write and sync, 100 entries",
                loaded(lambda: self._job(100)),
            ),
        ]

    def launch(self, scratch: Path) -> None:
        """Choose the file."""
        self._path = scratch / "limit"

    def ready(self) -> None:
        """At once."""

    def close(self) -> None:
        """Nothing runs."""

    def _job(self, entries: int) -> Job:
        return Job(driver="limit", target=str(self._path), entries=entries, sends=50_000)


DRIVER = LimitDriver()
