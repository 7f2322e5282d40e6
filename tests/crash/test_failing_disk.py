"""A disk that takes no more writes: the kernel's own error comes back from the sync of a record."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.promise import Conversation, check_promise
from tests.support.service import Service
from tests.support.small_volume import FileSystemKind, small_volume
from tests.support.tools import need_io_uring

NOWHERE: Final = "postgresql:///postgres?host=/nowhere"
MIB: Final = 1 << 20
SETTINGS: Final[dict[str, Any]] = {
    "ALLOW_NEW_WAL": "true",
    "WAL_SEGMENT_BYTES": 16 * MIB,
    # What was not written is zeros on the disk, as after a power cut.
    "WAL_TAIL": "tolerant",
    "SHUTDOWN_TIMEOUT_S": 0,
}


def fill(volume: Path) -> None:
    """Take all room of a volume."""
    ballast = volume / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(bytes(512)):
            pass


def forget(directory: Path) -> None:
    """Drop what the page cache has of the files of a directory: what is read next is on disk."""
    for path in directory.glob("*.wal"):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize("wal_sync", ["io_uring", "fdatasync"])
def test_a_record_that_the_disk_does_not_take_is_not_acknowledged_and_ends_the_service(
    tmp_path: Path, wal_sync: str
) -> None:
    if wal_sync == "io_uring":
        need_io_uring()
    settings = {**SETTINGS, "WAL_SYNC": wal_sync}
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    conversation = Conversation(size=50_000)
    with (
        # The blocks of the log's disk are those of a file that finds no room any more.
        small_volume(tmp_path, FileSystemKind.TMPFS, 48, "disk") as disk,
        small_volume(data, FileSystemKind.EXT4, 96, "wal", disk) as wal,
        Service(data, NOWHERE, **settings) as service,
    ):
        wal.chmod(0o700)
        service.start()
        with service.client() as client:
            assert set(conversation.send_all(client, 5)) == {200}
            fill(disk)
            assert None in conversation.send_all(client, 100)
        assert service.wait() != 0
        assert "syncing 00000000000000000000.wal failed" in service.log
        assert "Traceback" not in service.log
        forget(wal)
        check_promise(conversation, data, NOWHERE, **settings)
