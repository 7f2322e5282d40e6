"""Giving the log back: whole segments and holes, never a genesis; what is kept stays readable."""

import errno
from pathlib import Path

import pytest

from app.errors import WalFailed
from app.wal.files import FileSystem, write_new_file
from app.wal.retention import give_back
from tests.support.faulty_files import Call, Crash, FewDescriptors, WatchedFiles, os_error
from tests.support.wal_files import WrittenWal, make_settings, open_wal, snapshot, write_wal


@pytest.fixture
def wal(tmp_path: Path) -> WrittenWal:
    """Three segments of three records each."""
    return write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3)


def given_back(wal: WrittenWal, start: int, limit: int, files: FileSystem | None = None) -> int:
    return give_back(files or FileSystem(), wal.settings.wal_dir, start, limit)


def names(wal: WrittenWal) -> list[str]:
    return sorted(path.name for path in wal.settings.wal_dir.glob("*.wal"))


@pytest.mark.parametrize("index", range(10))
def test_recovery_works_after_giving_back_up_to_any_record(wal: WrittenWal, index: int) -> None:
    ends = [0, *(record.end for record in wal.records)]
    limit = ends[index]
    wal.checkpoint(limit, retained_offset=limit)
    given_back(wal, 0, limit)
    opened = open_wal(wal.settings)
    opened.log.close()
    assert opened.log.end == wal.end
    assert opened.next_command_id == 10
    assert opened.entries_to_replicate == 9 - index
    kept = {entry.request_uuid.int for record in wal.records[index:] for entry in record.entries}
    assert all(opened.index.get(key) for key in kept)
    assert len(opened.index) == len(kept)


def test_segments_before_the_limit_are_unlinked_and_the_rest_is_punched_but_for_the_genesis(
    wal: WrittenWal,
) -> None:
    limit = wal.records[4].end
    before = wal.genesis[1].path.read_bytes()
    assert given_back(wal, 0, limit) == wal.genesis[1].offset + limit - wal.genesis[1].end
    assert names(wal) == [wal.genesis[1].path.name, wal.genesis[2].path.name]
    after = wal.genesis[1].path.read_bytes()
    genesis, kept_from = wal.genesis[1].size, limit - wal.genesis[1].offset
    assert after[:genesis] == before[:genesis]
    assert after[genesis:kept_from] == bytes(kept_from - genesis)
    assert after[kept_from:] == before[kept_from:]


def test_a_segment_that_ends_at_the_limit_goes_whole(wal: WrittenWal) -> None:
    given_back(wal, 0, wal.genesis[1].offset)
    assert names(wal) == [wal.genesis[1].path.name, wal.genesis[2].path.name]
    assert wal.genesis[1].path.read_bytes() == wal.genesis[1].data + b"".join(
        record.data for record in wal.records[3:6]
    )


def test_the_last_segment_is_never_unlinked(wal: WrittenWal) -> None:
    given_back(wal, 0, wal.end)
    assert names(wal) == [wal.genesis[2].path.name]
    content = wal.genesis[2].path.read_bytes()
    assert content == wal.genesis[2].data + bytes(len(content) - wal.genesis[2].size)


def test_going_on_from_where_the_last_call_ended_gives_back_the_same(wal: WrittenWal) -> None:
    limits = [wal.records[0].end, wal.records[1].end, wal.records[4].end, wal.records[6].end]
    total, start = 0, 0
    files = WatchedFiles()
    for limit in limits:
        total += given_back(wal, start, limit, files)
        start = limit
    assert total == limits[-1] - sum(genesis.size for genesis in wal.genesis)
    punches = [(call.name, call.offset) for call in files.calls if call.operation == "punch"]
    assert len(punches) == len(set(punches)) == 4


def test_nothing_is_given_back_up_to_the_beginning(wal: WrittenWal) -> None:
    before = snapshot(wal.settings.data_dir)
    assert given_back(wal, 0, 0) == 0
    assert given_back(wal, 0, wal.genesis[0].end) == 0
    assert snapshot(wal.settings.data_dir) == before


def test_each_unlinking_is_durable_before_the_next(wal: WrittenWal) -> None:
    """A power cut may otherwise keep the first and lose the second: a gap, and a refused start."""
    files = WatchedFiles()
    given_back(wal, 0, wal.genesis[2].offset, files)
    assert files.calls[:4] == [
        Call("unlink", wal.genesis[0].path.name),
        Call("sync directory", "wal"),
        Call("unlink", wal.genesis[1].path.name),
        Call("sync directory", "wal"),
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_after_a_sync_that_failed_nothing_more_is_given_back(wal: WrittenWal, code: int) -> None:
    files = WatchedFiles()
    files.fault = lambda call: os_error(code) if call.operation == "sync directory" else None
    with pytest.raises(WalFailed, match=wal.genesis[0].path.name):
        given_back(wal, 0, wal.records[7].end, files)
    assert files.operations() == ["unlink", "sync directory"]


def test_without_a_descriptor_left_nothing_is_unlinked_and_it_may_be_tried_again(
    wal: WrittenWal,
) -> None:
    files = FewDescriptors()
    files.left = 0
    with pytest.raises(OSError, match="Too many open files"):
        given_back(wal, 0, wal.genesis[2].offset, files)
    assert files.calls == []
    assert len(names(wal)) == 3
    files.left = 2
    given_back(wal, 0, wal.genesis[2].offset, files)
    assert len(names(wal)) == 1


def test_a_change_of_names_and_its_sync_are_one_step_for_other_threads(
    wal: WrittenWal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the failed sync of the one could hide that the name of the other's segment is lost."""
    files = WatchedFiles()

    class Naming:
        def __enter__(self) -> None:
            files.calls.append(Call("begin", "names"))

        def __exit__(self, *_: object) -> None:
            files.calls.append(Call("end", "names"))

    monkeypatch.setattr(FileSystem, "naming", Naming())
    write_new_file(files, wal.settings.wal_dir / "next.wal", b"")
    given_back(wal, 0, wal.genesis[1].offset, files)
    changes = [call for call in files.calls if call.operation not in ("create", "write", "sync")]
    assert changes == [
        Call("begin", "names"),
        Call("rename", "next.wal"),
        Call("sync directory", "wal"),
        Call("end", "names"),
        Call("begin", "names"),
        Call("unlink", wal.genesis[0].path.name),
        Call("sync directory", "wal"),
        Call("end", "names"),
    ]


@pytest.mark.parametrize("step", range(5))
def test_after_a_crash_in_the_middle_the_log_still_opens_and_the_next_call_goes_on(
    wal: WrittenWal, step: int
) -> None:
    limit = wal.records[7].end
    wal.checkpoint(limit, retained_offset=limit)
    files = WatchedFiles()
    files.crash_at(step)
    with pytest.raises(Crash):
        given_back(wal, 0, limit, files)
    opened = open_wal(wal.settings)
    opened.log.close()
    assert (opened.log.end, opened.next_command_id) == (wal.end, 10)
    assert given_back(wal, limit, wal.records[8].end) >= 0
    assert names(wal) == [wal.genesis[2].path.name]


def test_a_file_system_that_can_not_punch_keeps_its_bytes(wal: WrittenWal) -> None:
    files = WatchedFiles()
    files.fault = lambda call: os_error(errno.EOPNOTSUPP) if call.operation == "punch" else None
    before = wal.genesis[1].path.read_bytes()
    assert given_back(wal, 0, wal.records[4].end, files) == wal.genesis[1].offset
    assert wal.genesis[1].path.read_bytes() == before
    wal.checkpoint(wal.records[4].end, retained_offset=wal.records[4].end)
    opened = open_wal(wal.settings)
    opened.log.close()
    assert opened.next_command_id == 10


def test_the_freed_bytes_come_back_from_the_disk(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[2000, 2000, 1]])
    path = wal.genesis[0].path
    with path.open("r+b") as file:
        FileSystem().sync_data(file.fileno())
    before = path.stat().st_blocks
    given_back(wal, 0, wal.records[1].end)
    assert path.stat().st_blocks < before / 2
    assert path.stat().st_size == wal.end
