"""The two ways to sync: each really syncs, and an I/O error is never tried again."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.settings import WalSync
from app.wal.files import FileSystem
from app.wal.sync import FallbackSyncer, FdatasyncSyncer, Syncer, open_ring, open_syncer
from tests.support.faulty_files import WatchedFiles, os_error
from tests.support.tools import io_uring_missing

needs_io_uring = pytest.mark.skipif(bool(io_uring_missing()), reason=io_uring_missing())


@pytest.fixture
def written(tmp_path: Path) -> Iterator[int]:
    """A descriptor with something to be synced."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"data")
    yield fd
    os.close(fd)


@pytest.fixture
def closed_fd(tmp_path: Path) -> int:
    fd = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT, 0o600)
    os.close(fd)
    return fd


@pytest.fixture
def ring() -> Iterator[Syncer]:
    syncer = open_ring()
    yield syncer
    syncer.close()


class Refusing:
    """Raises one error for ever, and counts how often it was asked."""

    name = "refusing"

    def __init__(self, code: int) -> None:
        self._code = code
        self.calls = 0
        self.closed = False

    def sync(self, _fd: int) -> None:
        self.calls += 1
        raise os_error(self._code)

    def close(self) -> None:
        self.closed = True


class Counting:
    """Syncs nothing, and counts how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0
        self.closed = False

    def sync(self, _fd: int) -> None:
        self.calls += 1

    def close(self) -> None:
        self.closed = True


def test_fdatasync_syncs_the_file_it_is_given(tmp_path: Path) -> None:
    files = WatchedFiles()
    fd = files.create(tmp_path / "file")
    FdatasyncSyncer(files).sync(fd)
    files.close(fd)
    assert files.operations() == ["create", "sync"]


def test_fdatasync_passes_an_error_on(closed_fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        FdatasyncSyncer(FileSystem()).sync(closed_fd)


@needs_io_uring
def test_io_uring_syncs_again_and_again(ring: Syncer, written: int) -> None:
    for number in range(40):  # more than the ring has entries
        os.write(written, b"%d" % number)
        ring.sync(written)


@needs_io_uring
def test_io_uring_passes_an_error_on_and_the_next_sync_is_right_again(
    ring: Syncer, written: int, closed_fd: int
) -> None:
    for _ in range(20):
        with pytest.raises(OSError, match="Bad file descriptor"):
            ring.sync(closed_fd)
        ring.sync(written)


@needs_io_uring
def test_io_uring_waits_on_when_a_signal_interrupts_it(
    ring: Syncer, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruptions = [InterruptedError(errno.EINTR, "interrupted")] * 2
    read = os.eventfd_read

    def interrupted(fd: int) -> int:
        if interruptions:
            raise interruptions.pop()
        return read(fd)

    monkeypatch.setattr(os, "eventfd_read", interrupted)
    ring.sync(written)
    assert not interruptions
    ring.sync(written)


@needs_io_uring
def test_io_uring_asks_for_the_sync_of_data(
    ring: Syncer, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    liburing = pytest.importorskip("liburing")
    prepared = []
    prepare = liburing.io_uring_prep_fsync

    def watch(request: object, fd: int, flags: int) -> None:
        prepared.append((fd, flags))
        prepare(request, fd, flags)

    monkeypatch.setattr(liburing, "io_uring_prep_fsync", watch)
    ring.sync(written)
    assert prepared == [(written, liburing.IORING_FSYNC_DATASYNC)]


@needs_io_uring
def test_io_uring_gives_its_descriptors_back(written: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        syncer = open_ring()
        syncer.sync(written)
        syncer.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_what_is_not_supported_falls_back_once_and_for_all(code: int) -> None:
    first, second, fallbacks = Refusing(code), Counting(), Counter()
    syncer = FallbackSyncer(first, second, fallbacks.count)
    assert syncer.name == "refusing"
    syncer.sync(3)
    syncer.sync(3)
    assert (first.calls, second.calls, fallbacks.value) == (1, 2, 1)
    assert first.closed
    assert syncer.name == "counting"
    syncer.close()
    assert second.closed


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EBADF, errno.EROFS])
def test_any_other_error_is_passed_on_and_never_tried_again(code: int) -> None:
    first, second, fallbacks = Refusing(code), Counting(), Counter()
    syncer = FallbackSyncer(first, second, fallbacks.count)
    with pytest.raises(OSError, match=os.strerror(code)):
        syncer.sync(3)
    assert (first.calls, second.calls, fallbacks.value) == (1, 0, 0)


def test_an_error_of_the_way_that_was_fallen_back_to_is_passed_on() -> None:
    first, second = Refusing(errno.ENOSYS), Refusing(errno.EINVAL)
    syncer = FallbackSyncer(first, second, Counter().count)
    for _ in range(2):
        with pytest.raises(OSError, match="Invalid argument"):
            syncer.sync(3)
    assert (first.calls, second.calls) == (1, 2)


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def count(self) -> None:
        self.value += 1


# -- the setting ----------------------------------------------------------------------------------


def no_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "liburing.py").write_text("raise ImportError('not for this architecture')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def no_ring(monkeypatch: pytest.MonkeyPatch, _tmp_path: Path) -> None:
    liburing = pytest.importorskip("liburing")
    monkeypatch.setattr(liburing, "io_uring_queue_init", lambda *arguments: -errno.EPERM)


@pytest.mark.parametrize(
    ("rehearsal", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "was ended by SIGILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSYS)", "was ended by SIGSYS"),
        ("raise OSError('no rings here')", "OSError: no rings here"),
    ],
)
def test_what_ends_a_process_that_tries_io_uring_does_not_end_the_service(
    rehearsal: str, reason: str
) -> None:
    with pytest.raises(OSError, match=f"{reason}$"):
        open_ring([sys.executable, "-c", rehearsal])


Unavailability = Callable[[pytest.MonkeyPatch, Path], None]


@pytest.mark.parametrize("make_unavailable", [no_module, no_ring])
def test_io_uring_that_was_asked_for_and_is_unavailable_stops_the_start(
    make_unavailable: Unavailability, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_unavailable(monkeypatch, tmp_path)
    with pytest.raises(SettingsError) as caught:
        open_syncer(WalSync.IO_URING, FileSystem(), Counter().count)
    message = str(caught.value)
    assert message.startswith("JOURNAL_WAL_SYNC='io_uring': ")
    assert "'auto' or 'fdatasync' is allowed" in message
    assert "\n" not in message


@pytest.mark.parametrize("make_unavailable", [no_module, no_ring])
def test_auto_takes_fdatasync_where_io_uring_is_unavailable_and_counts_it(
    make_unavailable: Unavailability, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_unavailable(monkeypatch, tmp_path)
    fallbacks = Counter()
    syncer = open_syncer(WalSync.AUTO, FileSystem(), fallbacks.count)
    assert isinstance(syncer, FdatasyncSyncer)
    assert fallbacks.value == 1


def test_fdatasync_that_was_asked_for_is_no_fallback() -> None:
    fallbacks = Counter()
    syncer = open_syncer(WalSync.FDATASYNC, FileSystem(), fallbacks.count)
    assert syncer.name == "fdatasync"
    assert fallbacks.value == 0


@needs_io_uring
def test_auto_prefers_io_uring_and_io_uring_means_nothing_else(written: int) -> None:
    auto = open_syncer(WalSync.AUTO, FileSystem(), Counter().count)
    only = open_syncer(WalSync.IO_URING, FileSystem(), Counter().count)
    assert isinstance(auto, FallbackSyncer)
    assert type(only) is type(open_ring())
    for syncer in (auto, only):
        assert syncer.name == "io_uring"
        syncer.sync(written)
        syncer.close()
