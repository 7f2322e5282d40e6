"""The simulated disk is a file system like the real one, until the power goes."""

import errno
from itertools import product
from pathlib import Path
from random import Random

import pytest

from app.wal.files import FileSystem
from tests.support.faulty_files import os_error
from tests.support.simulated_disk import Disk, Survivors
from tests.support.simulated_files import CrashingFiles, SimulatedFiles

DIRECTORY = Path("/d")
FILE = DIRECTORY / "file"


def survivors(mask: int) -> Survivors:
    return Survivors(mask, Random(0))


def left_of(files: SimulatedFiles, mask: int) -> dict[str, bytes]:
    return files.disk.after(survivors(mask)).contents(DIRECTORY)


@pytest.fixture
def files() -> SimulatedFiles:
    """A disk with one empty, durable file."""
    made = SimulatedFiles()
    made.make_directory(DIRECTORY)
    made.close(made.create(FILE))
    made.sync_directory(DIRECTORY)
    return made


@pytest.mark.parametrize("seed", range(20))
def test_a_reader_sees_what_a_real_file_system_shows(tmp_path: Path, seed: int) -> None:
    rng = Random(seed)
    real, simulated = FileSystem(), SimulatedFiles()
    simulated.make_directory(tmp_path)
    for _ in range(120):
        operation = rng.choice(
            ["create", "write", "write", "truncate", "punch", "rename", "unlink"]
        )
        numbers = [rng.randrange(6000) for _ in range(2)]
        names = [f"file{rng.randrange(4)}" for _ in range(2)]
        data = rng.randbytes(rng.randrange(1, 3000))
        outcomes = {
            perform(files, tmp_path, operation, names, numbers, data) for files in (real, simulated)
        }
        assert len(outcomes) == 1, operation
        shown = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert simulated.disk.contents(tmp_path) == shown
        assert simulated.names(tmp_path) == real.names(tmp_path)


def perform(
    files: FileSystem,
    directory: Path,
    operation: str,
    names: list[str],
    numbers: list[int],
    data: bytes,
) -> str:
    """Do the same to either file system; returns the error's name, if it is one."""
    path, other = (directory / name for name in names)
    try:
        match operation:
            case "create":
                files.close(files.create(path))
            case "rename":
                files.rename(path, other)
            case "unlink":
                files.unlink(path)
            case _:
                fd = files.open(path, write=True)
                if operation == "write":
                    files.write(fd, data, numbers[0])
                    assert files.read(fd, len(data), numbers[0]) == data
                elif operation == "truncate":
                    files.truncate(fd, numbers[0])
                else:
                    files.punch(fd, numbers[0], numbers[1] + 1)
                files.close(fd)
    except OSError as error:
        return type(error).__name__
    return ""


def test_what_was_synced_stays_and_nothing_else_must(files: SimulatedFiles) -> None:
    fd = files.open(FILE, write=True)
    files.write(fd, b"old", 0)
    files.sync_data(fd)
    files.write(fd, b"newer", 0)
    assert left_of(files, 0) == {"file": b"old"}
    assert left_of(files, -1) == {"file": b"newer"}
    files.sync_data(fd)
    assert left_of(files, 0) == {"file": b"newer"}


def test_sectors_survive_each_by_itself(files: SimulatedFiles) -> None:
    fd = files.open(FILE, write=True)
    files.write(fd, b"a" * 1536, 0)
    files.sync_data(fd)
    files.write(fd, b"b" * 1536, 0)
    left = {left_of(files, mask)["file"][::512] for mask in range(8)}
    assert left == {bytes(each) for each in product(b"ab", repeat=3)}


def test_a_file_may_have_grown_without_its_data_or_not_at_all(files: SimulatedFiles) -> None:
    fd = files.open(FILE, write=True)
    files.write(fd, b"b" * 1024, 0)
    rng = Random(1)
    left = {
        files.disk.after(Survivors(mask, rng)).contents(DIRECTORY)["file"]
        for mask in [*range(8)] * 50
    }
    assert {b"", bytes(1024), b"b" * 512 + bytes(512), b"b" * 1024} <= left
    assert any(0 < len(each) < 1024 for each in left)


def test_a_name_survives_only_the_sync_of_its_directory(files: SimulatedFiles) -> None:
    fd = files.create(DIRECTORY / "draft")
    files.write(fd, b"content", 0)
    files.sync_data(fd)
    assert left_of(files, 0) == {"file": b""}
    files.rename(DIRECTORY / "draft", FILE)
    left = [left_of(files, mask) for mask in range(4)]
    assert left == [
        {"file": b""},
        {"draft": b"content", "file": b""},
        {"file": b"content"},
        {"file": b"content"},
    ]
    files.sync_directory(DIRECTORY)
    assert left_of(files, 0) == {"file": b"content"}


def test_after_a_failed_sync_only_a_further_write_makes_the_data_durable() -> None:
    files = CrashingFiles()
    files.make_directory(DIRECTORY)
    fd = files.create(FILE)
    files.sync_directory(DIRECTORY)
    files.write(fd, b"data", 0)
    files.fault = lambda call: os_error(errno.EIO) if call.operation == "sync" else None
    with pytest.raises(OSError, match="output"):
        files.sync_data(fd)
    files.fault = lambda call: None
    files.sync_data(fd)
    assert files.read(fd, 9, 0) == b"data"
    assert left_of(files, -1) == {"file": b""}
    files.write(fd, b"data", 0)
    files.sync_data(fd)
    assert left_of(files, 0) == {"file": b"data"}


def test_a_disk_that_was_left_is_the_same_to_the_next_run(files: SimulatedFiles) -> None:
    fd = files.open(FILE, write=True)
    files.write(fd, b"not synced", 0)
    killed = SimulatedFiles(files.disk)
    assert killed.read_file(FILE) == b"not synced"
    cut: Disk = killed.disk.after(survivors(0))
    assert SimulatedFiles(cut).read_file(FILE) == b""
