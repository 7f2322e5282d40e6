"""The file-system seam.

The only module that opens, writes, syncs, renames, cuts, punches and locks.

Everything above takes a `FileSystem`, so that a test can put one in its place that fails, or that
forgets what was not synced. Methods raise `OSError` as the kernel gives it; meaning is added by the
callers.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import ClassVar, Final, NamedTuple

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
DRAFT_SUFFIX: Final = ".tmp"

_FALLOC_KEEP_SIZE: Final = 0x01
_FALLOC_PUNCH_HOLE: Final = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class FileId(NamedTuple):
    """What tells one file from another that took its name."""

    device: int
    inode: int


class Volume(NamedTuple):
    """Room on the volume of a path, in bytes."""

    total_bytes: int
    used_bytes: int
    available_bytes: int


class UnsyncedName(OSError):
    """The sync of a directory has failed after a name in it was changed.

    What is durable of the directory is not known any more, and a further sync would not tell: the
    kernel reports a failure once, and may have dropped what it could not write.
    """


class FileSystem:
    """The real file system."""

    naming: ClassVar = Lock()
    """Held from a change of a directory's names to the sync that makes it durable.

    A sync that fails says so once, to one thread: what another had changed by then could be lost,
    and its own sync would still succeed.
    """

    def make_directory(self, path: Path) -> None:
        """Create `path` and what is missing above it, mode 0700, each entry made durable.

        Also that of a directory that is there: its maker may have died before it was.
        """
        if self.is_directory(path):
            with suppress(PermissionError):  # who may not look above has not made it either
                self.sync_directory(path.parent)
            return
        self.make_directory(path.parent)
        self.create_directory(path)
        self.sync_directory(path.parent)

    def is_directory(self, path: Path) -> bool:
        """Whether `path` is a directory."""
        return path.is_dir()

    def create_directory(self, path: Path) -> None:
        """Create a directory, mode 0700, where there may be one already."""
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, sorted."""
        return sorted(os.listdir(directory))

    def exists(self, path: Path) -> bool:
        """Whether `path` is there."""
        return path.exists()

    def create(self, path: Path) -> int:
        """Create a new file, mode 0600, for reading and writing; it must not exist."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def open(self, path: Path, *, write: bool = False) -> int:
        """Open an existing file."""
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def size(self, fd: int) -> int:
        """The size of an open file in bytes."""
        return os.fstat(fd).st_size

    def size_of(self, path: Path) -> int:
        """The size of the file at `path` in bytes."""
        return path.stat().st_size

    def identity(self, fd: int) -> FileId:
        """Which file a descriptor is open on."""
        status = os.fstat(fd)
        return FileId(status.st_dev, status.st_ino)

    def identity_of(self, path: Path) -> FileId:
        """Which file is at `path` now."""
        status = os.stat(path)
        return FileId(status.st_dev, status.st_ino)

    def read(self, fd: int, length: int, offset: int) -> bytes:
        """Read up to `length` bytes; fewer only at the end of the file."""
        data = os.pread(fd, length, offset)
        if len(data) in (0, length):
            return data
        parts = [data]
        done = len(data)
        while done < length and (data := os.pread(fd, length - done, offset + done)):
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def read_file(self, path: Path) -> bytes:
        """The whole of a small file."""
        return path.read_bytes()

    def write(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def sync_data(self, fd: int) -> None:
        """`fdatasync`: data, and what is needed to read it back, is on stable storage."""
        os.fdatasync(fd)

    def open_directory(self, path: Path) -> int:
        """Open a directory, for `sync_names`."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def sync_names(self, fd: int) -> None:
        """Make the entries of an open directory durable."""
        os.fsync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable."""
        fd = self.open_directory(path)
        try:
            self.sync_names(fd)
        finally:
            self.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut a file to `size` bytes; blocks beyond are released."""
        os.ftruncate(fd, size)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        """Reserve blocks without changing the file's size."""
        _fallocate(fd, _FALLOC_KEEP_SIZE, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give the blocks of a range back; it reads as zeros afterwards."""
        _fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, offset, length)

    def rename(self, source: Path, target: Path) -> None:
        """Replace `target` by `source` atomically."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        os.unlink(path)

    def lock(self, path: Path) -> int:
        """Take an exclusive lock on `path`, creating it; `BlockingIOError` when it is taken."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def volume(self, path: Path) -> Volume:
        """How much room the volume of `path` has."""
        status = os.statvfs(path)
        block = status.f_frsize
        return Volume(
            status.f_blocks * block,
            (status.f_blocks - status.f_bfree) * block,
            status.f_bavail * block,
        )


def write_new_file(
    files: FileSystem,
    path: Path,
    data: bytes | bytearray,
    prepare: Callable[[int], None] = lambda fd: None,
) -> None:
    """As `open_new_file`, and close it."""
    files.close(open_new_file(files, path, data, prepare))


def open_new_file(
    files: FileSystem,
    path: Path,
    data: bytes | bytearray,
    prepare: Callable[[int], None] = lambda fd: None,
) -> int:
    """Write and sync a draft, then name it `path`, which so never shows a part of it.

    File and directory are synced. `prepare` is called with the open descriptor before the data is
    written. Returns the descriptor, for reading and writing. Raises `OSError`, with `path` as it
    was, and `UnsyncedName` once the draft is there: by then no descriptor is needed any more.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    directory = files.open_directory(path.parent)
    try:
        if files.exists(draft):
            files.unlink(draft)
        fd = files.create(draft)
        try:
            _write_draft(files, draft, fd, data, prepare)
            with files.naming:
                files.rename(draft, path)
                try:
                    files.sync_names(directory)
                except OSError as error:
                    raise UnsyncedName(error.errno, error.strerror, str(path.parent)) from error
        except BaseException:
            files.close(fd)
            raise
    finally:
        files.close(directory)
    return fd


def _write_draft(
    files: FileSystem,
    draft: Path,
    fd: int,
    data: bytes | bytearray,
    prepare: Callable[[int], None],
) -> None:
    try:
        prepare(fd)
        files.write(fd, data, 0)
        files.sync_data(fd)
    except OSError:
        files.unlink(draft)
        raise


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
