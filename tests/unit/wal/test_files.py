"""The file-system seam: what it promises beyond the system calls below it."""

from pathlib import Path

import pytest

from tests.support.faulty_files import Call, Crash, WatchedFiles


def test_a_new_directory_is_durable_before_anything_is_made_in_it(tmp_path: Path) -> None:
    files = WatchedFiles()
    files.make_directory(tmp_path / "a" / "b")
    assert files.calls[-4:] == [
        Call("create directory", "a"),
        Call("sync directory", tmp_path.name),
        Call("create directory", "b"),
        Call("sync directory", "a"),
    ]


def test_a_directory_that_is_there_is_made_durable_too(tmp_path: Path) -> None:
    """Whoever made it may have died before."""
    synced = Call("sync directory", tmp_path.name)
    files = WatchedFiles()
    files.fault = lambda call: Crash() if call == synced else None
    with pytest.raises(Crash):
        files.make_directory(tmp_path / "a")
    assert (tmp_path / "a").is_dir()
    files = WatchedFiles()
    files.make_directory(tmp_path / "a")
    assert files.calls == [synced]


def test_a_directory_below_one_that_may_not_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    files = WatchedFiles()
    files.fault = lambda call: PermissionError()
    files.make_directory(tmp_path)
    assert [call.operation for call in files.calls] == ["sync directory"]
