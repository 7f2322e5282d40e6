"""A disk in memory that may forget what was not synced; `simulated_files` is the seam on it.

What a program sees is the page cache; what a power cut leaves is what was synced, and of the rest
whatever `Survivors` decide: each directory entry, each size, each sector by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

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
EMPTY_DIRECTORY: Final = Directory({}, (), {})


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

    @property
    def is_durable(self) -> bool:
        """Whether a power cut could change nothing that a reader sees."""
        return all(node.durable == node.cached for node in self.nodes.values())

    def contents(self, path: Path) -> dict[str, bytes]:
        """What a reader sees in the files of a directory, by name; nothing if there is none."""
        number = find(self.nodes, path)
        node = None if number is None else self.nodes[number]
        if not isinstance(node, Directory):
            return {}
        files = {name: self.nodes[number] for name, number in sorted(node.cached.items())}
        return {name: file.cached for name, file in files.items() if isinstance(file, File)}


EMPTY: Final = Disk({ROOT: EMPTY_DIRECTORY})


def find(nodes: Mapping[int, Node], path: Path) -> int | None:
    """The node at a path, as a reader sees it."""
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
