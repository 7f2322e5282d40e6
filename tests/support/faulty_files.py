"""The real file system, watched: every call that changes or syncs a file, and faults in them."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from app.wal.files import FileSystem


class Crash(Exception):
    """The process is dead: nothing that it still tries has any effect."""


class Call(NamedTuple):
    """One call: what it does, to the file of which name, where, and to how many bytes."""

    operation: str
    name: str
    offset: int = 0
    length: int = 0


class ShortWrite(OSError):
    """A write that fails after its first `written` bytes."""

    def __init__(self, code: int, written: int) -> None:
        super().__init__(code, os.strerror(code))
        self.written = written


Fault = Callable[[Call], Exception | None]


def no_room(call: Call) -> Exception | None:
    """Every write fails as on a full disk."""
    return os_error(errno.ENOSPC) if call.operation == "write" else None


def os_error(code: int) -> OSError:
    """The error that the kernel reports with `code`."""
    return OSError(code, os.strerror(code))


class WatchedFiles(FileSystem):
    """`calls` lists what was done; `fault` may give an exception to raise in place of a call."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.fault: Fault = lambda call: None
        self._names: dict[int, str] = {}

    def crash_at(self, number: int) -> None:
        """Let the process die in place of the call of that number, counted from 0 and from now."""
        first = len(self.calls)
        self.fault = lambda call: Crash(call) if len(self.calls) > first + number else None

    def create_directory(self, path: Path) -> None:
        self._watch("create directory", path.name)
        super().create_directory(path)

    def create(self, path: Path) -> int:
        self._watch("create", path.name)
        return self._named(super().create(path), path)

    def open(self, path: Path, *, write: bool = False) -> int:
        return self._named(super().open(path, write=write), path)

    def write(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        try:
            self._watch("write", self._names[fd], offset, len(data))
        except ShortWrite as short:
            super().write(fd, data[: short.written], offset)
            raise
        super().write(fd, data, offset)

    def sync_data(self, fd: int) -> None:
        self._watch("sync", self._names[fd])
        super().sync_data(fd)

    def open_directory(self, path: Path) -> int:
        return self._named(super().open_directory(path), path)

    def sync_names(self, fd: int) -> None:
        self._watch("sync directory", self._names[fd])
        super().sync_names(fd)

    def truncate(self, fd: int, size: int) -> None:
        self._watch("truncate", self._names[fd], size)
        super().truncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._watch("allocate", self._names[fd], offset, length)
        super().allocate(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._watch("punch", self._names[fd], offset, length)
        super().punch(fd, offset, length)

    def rename(self, source: Path, target: Path) -> None:
        self._watch("rename", target.name)
        super().rename(source, target)
        for fd, name in list(self._names.items()):
            if name == source.name:
                self._names[fd] = target.name

    def unlink(self, path: Path) -> None:
        self._watch("unlink", path.name)
        super().unlink(path)

    def operations(self) -> list[str]:
        """What was done, without to what."""
        return [call.operation for call in self.calls]

    def _named(self, fd: int, path: Path) -> int:
        self._names[fd] = path.name
        return fd

    def _watch(self, operation: str, name: str, offset: int = 0, length: int = 0) -> None:
        call = Call(operation, name, offset, length)
        self.calls.append(call)
        error = self.fault(call)
        if error is not None:
            raise error


class FewDescriptors(WatchedFiles):
    """`left` descriptors can be had, and those that are closed go to somebody else."""

    def __init__(self, code: int = errno.EMFILE) -> None:
        super().__init__()
        self.left = 1 << 30
        self._code = code

    def create(self, path: Path) -> int:
        self._take()
        return super().create(path)

    def open(self, path: Path, *, write: bool = False) -> int:
        self._take()
        return super().open(path, write=write)

    def open_directory(self, path: Path) -> int:
        self._take()
        return super().open_directory(path)

    def _take(self) -> None:
        if self.left <= 0:
            raise os_error(self._code)
        self.left -= 1
