"""The product's file-system seam on a simulated disk."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from app.wal.files import FileId, FileSystem, Volume
from tests.support.faulty_files import Call, WatchedFiles, os_error
from tests.support.simulated_disk import (
    EMPTY,
    EMPTY_DIRECTORY,
    Change,
    Directory,
    Disk,
    File,
    Link,
    Node,
    Punch,
    Truncate,
    Unlink,
    Write,
    find,
)


class SimulatedFiles(FileSystem):
    """The seam on a simulated disk."""

    def __init__(self, disk: Disk = EMPTY) -> None:
        self._nodes = dict(disk.nodes)
        self._descriptors: dict[int, int] = {}
        self._writable: set[int] = set()
        self._next_descriptor = 1000
        self._next_node = max(self._nodes) + 1

    @property
    def disk(self) -> Disk:
        """The disk as it is now, page cache included."""
        return Disk(dict(self._nodes))

    def is_directory(self, path: Path) -> bool:
        number = find(self._nodes, path)
        return number is not None and isinstance(self._nodes[number], Directory)

    def create_directory(self, path: Path) -> None:
        self._add(path, EMPTY_DIRECTORY)

    def names(self, directory: Path) -> list[str]:
        return sorted(self._directory(directory)[1].cached)

    def exists(self, path: Path) -> bool:
        return find(self._nodes, path) is not None

    def create(self, path: Path) -> int:
        if self.exists(path):
            raise os_error(errno.EEXIST)
        return self._describe(self._add(path, File()))

    def open(self, path: Path, *, write: bool = False) -> int:
        return self._describe(self._number(path), is_writable=write)

    def close(self, fd: int) -> None:
        del self._descriptors[fd]
        self._writable.discard(fd)

    def size(self, fd: int) -> int:
        return len(self._file(fd).cached)

    def size_of(self, path: Path) -> int:
        return len(self.read_file(path))

    def identity(self, fd: int) -> FileId:
        return FileId(0, self._descriptors[fd])

    def identity_of(self, path: Path) -> FileId:
        return FileId(0, self._number(path))

    def read(self, fd: int, length: int, offset: int) -> bytes:
        return self._file(fd).cached[offset : offset + length]

    def read_file(self, path: Path) -> bytes:
        node = self._nodes[self._number(path)]
        if not isinstance(node, File):
            raise os_error(errno.EISDIR)
        return node.cached

    def write(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._change(fd, Write(offset, bytes(data)))

    def sync_data(self, fd: int) -> None:
        self._nodes[self._descriptors[fd]] = self._file(fd).synced()

    def open_directory(self, path: Path) -> int:
        number, _ = self._directory(path)
        return self._describe(number, is_writable=False)

    def sync_names(self, fd: int) -> None:
        number = self._descriptors[fd]
        node = self._nodes[number]
        assert isinstance(node, Directory)
        self._nodes[number] = node.synced()

    def truncate(self, fd: int, size: int) -> None:
        self._change(fd, Truncate(size))

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Blocks beyond the size change nothing that can be read."""

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._change(fd, Punch(offset, length))

    def rename(self, source: Path, target: Path) -> None:
        self._rename(source.parent, Link(target.name, self._number(source), source.name))

    def unlink(self, path: Path) -> None:
        self._number(path)
        self._rename(path.parent, Unlink(path.name))

    def lock(self, path: Path) -> int:
        return self.open(path) if self.exists(path) else SimulatedFiles.create(self, path)

    def volume(self, path: Path) -> Volume:
        self._number(path)
        return Volume(1 << 40, 0, 1 << 40)

    def give_up(self, fd: int) -> None:
        """What a failed sync does to the pages of a file."""
        self._nodes[self._descriptors[fd]] = self._file(fd).given_up()

    def _add(self, path: Path, node: Node) -> int:
        number = self._next_node
        self._next_node += 1
        self._rename(path.parent, Link(path.name, number))
        self._nodes[number] = node
        return number

    def _rename(self, path: Path, change: Link | Unlink) -> None:
        number, directory = self._directory(path)
        self._nodes[number] = directory.changed(change)

    def _describe(self, number: int, *, is_writable: bool = True) -> int:
        fd = self._next_descriptor = self._next_descriptor + 1
        self._descriptors[fd] = number
        if is_writable:
            self._writable.add(fd)
        return fd

    def _number(self, path: Path) -> int:
        number = find(self._nodes, path)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return number

    def _directory(self, path: Path) -> tuple[int, Directory]:
        number = self._number(path)
        node = self._nodes[number]
        if not isinstance(node, Directory):
            raise os_error(errno.ENOTDIR)
        return number, node

    def _file(self, fd: int) -> File:
        node = self._nodes[self._descriptors[fd]]
        assert isinstance(node, File)
        return node

    def _change(self, fd: int, change: Change) -> None:
        if fd not in self._writable:
            raise os_error(errno.EBADF)
        self._nodes[self._descriptors[fd]] = self._file(fd).changed(change)


class CrashingFiles(WatchedFiles, SimulatedFiles):
    """A simulated disk whose calls are listed and may fail; `before` is told of each call first."""

    def __init__(self, disk: Disk = EMPTY, before: Callable[[Call], None] = lambda call: None):
        WatchedFiles.__init__(self)
        SimulatedFiles.__init__(self, disk)
        self.before = before

    def sync_data(self, fd: int) -> None:
        try:
            super().sync_data(fd)
        except OSError:
            self.give_up(fd)
            raise

    def _watch(self, operation: str, name: str, offset: int = 0, length: int = 0) -> None:
        self.before(Call(operation, name, offset, length))
        super()._watch(operation, name, offset, length)
