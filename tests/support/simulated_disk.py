"""A disk in memory that may forget what was not synced, behind the product's file-system seam.

What a program sees is the page cache; what a power cut leaves is what was synced, and of the rest
whatever `Survivors` decide: each directory entry, each size, each sector by itself.
"""

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from app.wal.files import FileId, FileSystem, Volume
from tests.support.faulty_files import Call, WatchedFiles, os_error

ROOT: Final = 0


class Write(NamedTuple):
    at: int
    data: bytes


class Truncate(NamedTuple):
    size: int


class Punch(NamedTuple):
    at: int
    length: int


class Link(NamedTuple):
    """A name for a node: a new one, or in place of the name that it had before."""

    name: str
    node: int
    before: str | None = None


class Unlink(NamedTuple):
    name: str


Change = Write | Truncate | Punch


@dataclass(frozen=True, slots=True)
class File:
    """What is durable, what was done since, and what a reader sees."""

    durable: bytes = b""
    changes: tuple[Change, ...] = ()
    cached: bytes = b""

    def changed(self, change: Change) -> "File":
        return File(self.durable, (*self.changes, change), _change(self.cached, change))

    def synced(self) -> "File":
        return File(reduce(_change, self.changes, self.durable), (), self.cached)

    def given_up(self) -> "File":
        """After a sync that failed: the pages count as clean, and no later sync writes them."""
        return File(self.durable, (), self.cached)

    def after(self, survivors: "Survivors") -> "File":
        """What a power cut leaves."""
        content = bytearray(self.durable)
        sizes = [len(content)]
        for change in self.changes:
            sizes.append(_size_after(sizes[-1], change))
            _survive(content, change, survivors)
        size = survivors.size(sizes)
        missing = size - len(content)
        left = bytes(content[:size]) + (survivors.unwritten(missing) if missing > 0 else b"")
        return File(left, (), left)


@dataclass(frozen=True, slots=True)
class Directory:
    """Likewise, of names."""

    durable: Mapping[str, int]
    changes: tuple[Link | Unlink, ...]
    cached: Mapping[str, int]

    def changed(self, change: Link | Unlink) -> "Directory":
        return replace(
            self, changes=(*self.changes, change), cached=_entries(self.cached, [change])
        )

    def synced(self) -> "Directory":
        return Directory(self.cached, (), self.cached)

    def after(self, survivors: "Survivors") -> "Directory":
        kept = [change for change in self.changes if survivors.keeps()]
        left = _entries(self.durable, kept)
        return Directory(left, (), left)


Node = File | Directory
_EMPTY_DIRECTORY: Final = Directory({}, (), {})


class Survivors:
    """Decides of each thing that was not synced whether a power cut leaves it.

    The bits of `mask` answer one after the other; chance gives what is not yes or no.
    """

    def __init__(self, mask: int, rng: Random, sector_bytes: int = 512) -> None:
        self.asked = 0
        self.sector_bytes = sector_bytes
        self._mask = mask
        self._rng = rng

    def keeps(self) -> bool:
        self.asked += 1
        return bool(self._mask >> (self.asked - 1) & 1)

    def size(self, sizes: list[int]) -> int:
        """One of the sizes that a file had, the last for yes; now and then one in between."""
        if len(sizes) == 1:
            return sizes[0]
        if self.keeps():
            return sizes[-1]
        earlier, later = self._rng.choice(list(pairwise(sizes)))
        return self._rng.choice([earlier, self._rng.randint(min(earlier, later), later)])

    def unwritten(self, length: int) -> bytes:
        """What is in a block that belongs to a file and was never written: zeros, or older data."""
        if self._rng.random() < 0.8:
            return bytes(length)
        return self._rng.randbytes(length)


@dataclass(frozen=True, slots=True)
class Disk:
    """Everything on it. Node 0 is the root directory."""

    nodes: Mapping[int, Node]

    def after(self, survivors: Survivors) -> "Disk":
        """What a power cut leaves, without the files that have no name any more."""
        nodes: dict[int, Node] = {}
        waiting = [ROOT]
        while waiting:
            number = waiting.pop()
            node = nodes[number] = self.nodes[number].after(survivors)
            if isinstance(node, Directory):
                waiting += sorted(node.durable.values())
        return Disk(nodes)

    def contents(self, path: Path) -> dict[str, bytes]:
        """What a reader sees in the files of a directory, by name; nothing if there is none."""
        number = _find(self.nodes, path)
        node = None if number is None else self.nodes[number]
        if not isinstance(node, Directory):
            return {}
        files = {name: self.nodes[number] for name, number in sorted(node.cached.items())}
        return {name: file.cached for name, file in files.items() if isinstance(file, File)}


EMPTY: Final = Disk({ROOT: _EMPTY_DIRECTORY})


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
        number = _find(self._nodes, path)
        return number is not None and isinstance(self._nodes[number], Directory)

    def create_directory(self, path: Path) -> None:
        self._add(path, _EMPTY_DIRECTORY)

    def names(self, directory: Path) -> list[str]:
        return sorted(self._directory(directory)[1].cached)

    def exists(self, path: Path) -> bool:
        return _find(self._nodes, path) is not None

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

    def sync_directory(self, path: Path) -> None:
        number, directory = self._directory(path)
        self._nodes[number] = directory.synced()

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
        number = _find(self._nodes, path)
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


def _find(nodes: Mapping[int, Node], path: Path) -> int | None:
    number = ROOT
    for name in path.parts[1:]:
        node = nodes[number]
        if not isinstance(node, Directory) or name not in node.cached:
            return None
        number = node.cached[name]
    return number


def _entries(before: Mapping[str, int], changes: list[Link | Unlink]) -> dict[str, int]:
    entries = dict(before)
    for change in changes:
        if isinstance(change, Unlink):
            entries.pop(change.name, None)
            continue
        if change.before is not None and entries.get(change.before) == change.node:
            del entries[change.before]
        entries[change.name] = change.node
    return entries


def _change(content: bytes, change: Change) -> bytes:
    match change:
        case Write(at, data):
            return content[:at].ljust(at, b"\0") + data + content[at + len(data) :]
        case Truncate(size):
            return content[:size].ljust(size, b"\0")
        case Punch(at, length):
            end = min(at + length, len(content))
            return content[:at] + bytes(max(end - at, 0)) + content[max(end, at) :]


def _size_after(size: int, change: Change) -> int:
    match change:
        case Write(at, data):
            return max(size, at + len(data))
        case Truncate(cut):
            return cut
        case Punch():
            return size


def _survive(content: bytearray, change: Change, survivors: Survivors) -> None:
    """Let the part of a change that survives reach the disk; sizes are decided by themselves."""
    match change:
        case Truncate(size):
            if survivors.keeps():
                content[size:] = bytes(max(len(content) - size, 0))
        case Write(at, data):
            for start, end in _sectors(at, at + len(data), survivors.sector_bytes):
                if survivors.keeps():
                    if start > len(content):
                        content += survivors.unwritten(start - len(content))
                    content[start:end] = data[start - at : end - at]
        case Punch(at, length):
            for start, end in _sectors(at, min(at + length, len(content)), survivors.sector_bytes):
                if survivors.keeps():
                    content[start:end] = bytes(end - start)


def _sectors(start: int, end: int, sector_bytes: int) -> list[tuple[int, int]]:
    """The parts of a range that lie in one sector each."""
    marks = [start, *range((start // sector_bytes + 1) * sector_bytes, end, sector_bytes), end]
    return list(pairwise(marks)) if start < end else []
