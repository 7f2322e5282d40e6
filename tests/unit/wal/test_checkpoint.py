"""`checkpoint.json`: what is in it, and that a reader never sees a part of it."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.wal.checkpoint import Checkpoint, decode_checkpoint, read_checkpoint, write_checkpoint
from app.wal.files import FileSystem
from tests.support.faulty_files import Crash, FewDescriptors, WatchedFiles, os_error

FIRST = Checkpoint(wal_id="w", environment="e", wal_offset=10, last_command_id=2)
SECOND = Checkpoint(
    wal_id="w", environment="e", wal_offset=50, last_command_id=9, last_l2_seq=7, retained_offset=20
)


def test_it_holds_what_the_protocol_says(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.json"
    write_checkpoint(FileSystem(), path, SECOND)
    assert json.loads(path.read_bytes()) == {
        "wal_id": "w",
        "environment": "e",
        "wal_offset": 50,
        "last_command_id": 9,
        "last_l2_seq": 7,
        "retained_offset": 20,
    }
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_checkpoint(FileSystem(), path) == SECOND


def test_it_is_written_synced_renamed_and_its_directory_synced_in_this_order(
    tmp_path: Path,
) -> None:
    path = tmp_path / "checkpoint.json"
    write_checkpoint(FileSystem(), path, FIRST)
    files = WatchedFiles()
    write_checkpoint(files, path, SECOND)
    assert [call[:2] for call in files.calls] == [
        ("create", "checkpoint.json.tmp"),
        ("write", "checkpoint.json.tmp"),
        ("sync", "checkpoint.json.tmp"),
        ("rename", "checkpoint.json"),
        ("sync directory", tmp_path.name),
    ]


@pytest.mark.parametrize("left", range(3))
def test_too_few_descriptors_leave_the_old_one_and_it_may_be_written_again(
    tmp_path: Path, left: int
) -> None:
    """However few there are: once it has its name, none is needed that could be gone by then."""
    path = tmp_path / "checkpoint.json"
    write_checkpoint(FileSystem(), path, FIRST)
    files = FewDescriptors()
    files.left = left
    if left < 2:
        with pytest.raises(OSError, match="Too many open files"):
            write_checkpoint(files, path, SECOND)
        assert read_checkpoint(FileSystem(), path) == FIRST
        files.left = 2
    write_checkpoint(files, path, SECOND)
    assert read_checkpoint(FileSystem(), path) == SECOND


@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_any_step_leaves_the_old_one_or_the_new_one(tmp_path: Path, step: int) -> None:
    path = tmp_path / "checkpoint.json"
    write_checkpoint(FileSystem(), path, FIRST)
    files = WatchedFiles()
    files.crash_at(step)
    with pytest.raises(Crash):
        write_checkpoint(files, path, SECOND)
    assert read_checkpoint(FileSystem(), path) == (SECOND if step == 4 else FIRST)
    write_checkpoint(FileSystem(), path, SECOND)
    assert read_checkpoint(FileSystem(), path) == SECOND


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_an_error_leaves_the_old_one_and_no_draft(tmp_path: Path, operation: str) -> None:
    path = tmp_path / "checkpoint.json"
    write_checkpoint(FileSystem(), path, FIRST)
    files = WatchedFiles()
    files.fault = lambda call: os_error(errno.EIO) if call.operation == operation else None
    with pytest.raises(OSError, match="Input/output error"):
        write_checkpoint(files, path, SECOND)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.json"]
    assert read_checkpoint(FileSystem(), path) == FIRST


def test_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_checkpoint(FileSystem(), tmp_path / "checkpoint.json") is None


def test_one_that_can_not_be_read_is_an_error_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").mkdir()
    with pytest.raises(IsADirectoryError):
        read_checkpoint(FileSystem(), tmp_path / "checkpoint.json")


@given(cut=st.integers(0, 200))
def test_any_beginning_of_one_is_torn(cut: int) -> None:
    data = json.dumps(json.loads(b'{"wal_id":"w","environment":"e"}')).encode()[:cut]
    assert decode_checkpoint(data) is None


@given(st.binary(max_size=60))
def test_any_other_bytes_are_torn(data: bytes) -> None:
    assert decode_checkpoint(data) is None


@pytest.mark.parametrize(
    "change",
    [
        {"wal_offset": -1},
        {"retained_offset": -1},
        {"last_command_id": -1},
        {"wal_offset": "10"},
        {"wal_offset": None},
        {"wal_id": 5},
    ],
    ids=str,
)
def test_a_field_that_can_not_be_makes_it_torn(change: dict[str, object]) -> None:
    fields = {"wal_id": "w", "environment": "e", "wal_offset": 10, "last_command_id": 2}
    assert decode_checkpoint(json.dumps(fields).encode()) == FIRST
    assert decode_checkpoint(json.dumps({**fields, **change}).encode()) is None


def test_fields_of_a_later_version_are_passed_over() -> None:
    fields = {"wal_id": "w", "environment": "e", "wal_offset": 10, "last_command_id": 2, "new": [1]}
    assert decode_checkpoint(json.dumps(fields).encode()) == FIRST
