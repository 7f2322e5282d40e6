"""Following the log where the kernel can't read it."""

import errno
from pathlib import Path

import pytest

from app.errors import WalUnreadable
from app.replication.tail import Tail
from app.wal.files import FileSystem
from tests.support.faulty_files import os_error
from tests.support.wal_files import make_settings, write_wal


class Unreadable(FileSystem):
    """One kind of call fails."""

    def __init__(self, failing: str) -> None:
        self._failing = failing

    def names(self, directory: Path) -> list[str]:
        self._fail("names")
        return super().names(directory)

    def size_of(self, path: Path) -> int:
        self._fail("size_of")
        return super().size_of(path)

    def open(self, path: Path, *, write: bool = False) -> int:
        self._fail("open")
        return super().open(path, write=write)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        self._fail("read")
        return super().read(fd, length, offset)

    def _fail(self, call: str) -> None:
        if call == self._failing:
            raise os_error(errno.EIO)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("names", "wal"),
        ("size_of", "wal"),
        ("open", "00000000000000000000.wal"),
        ("read", "00000000000000000000.wal"),
    ],
)
def test_an_error_in_reading_names_the_file(tmp_path: Path, call: str, name: str) -> None:
    wal = write_wal(make_settings(tmp_path), [[1, 2], [3]])
    tail = Tail(Unreadable(call), wal.settings.wal_dir, 0)
    with pytest.raises(WalUnreadable, match=f"^{name} can't be read: Input/output error$"):
        tail.read(wal.end, 1000)
    tail.close()
