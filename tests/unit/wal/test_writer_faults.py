"""The writer on a full disk, after fatal errors, and where a segment ends."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from app.errors import DiskFull, InvariantError, RequestConflict, Unavailable, WalFailed
from app.wal.files import FileSystem
from app.wal.segments import segment_name
from app.wal.writer import Appended, Outcome, Reached
from tests.support.faulty_files import (
    Call,
    FewDescriptors,
    ShortWrite,
    WatchedFiles,
    no_room,
    os_error,
)
from tests.support.foreign_wal import read_wal
from tests.support.journal_entries import make_entry
from tests.support.running_writer import Running, appended, batches, entry, fresh, request, started
from tests.support.waiting import wait_for
from tests.support.wal_files import open_wal, read_commands

# Its own and that of its directory.
DESCRIPTORS_OF_A_SEGMENT: Final = 2

# -- a full disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("written", [None, 0, 1, 100])
def test_a_full_disk_cuts_the_partial_record_off_and_the_next_request_succeeds(
    running: Running, code: int, written: int | None
) -> None:
    running.append(request(entry(1)))
    path = running.settings.wal_dir / running.names[0]
    before = path.read_bytes()
    error = os_error(code) if written is None else ShortWrite(code, written)
    running.files.fault = lambda call: error if call.operation == "write" else None
    outcomes = running.append(fresh(2), fresh(1))
    assert [type(outcome) for outcome in outcomes] == [DiskFull, DiskFull]
    assert path.read_bytes() == before
    assert running.passes[-1].entries == 0
    running.files.fault = lambda call: None
    outcome = appended(running.append(fresh(2))[0])
    assert (outcome.first_command_id, outcome.last_command_id) == (2, 3)
    assert outcome.wal_offset == batches(running.settings)[-1].end
    assert running.fatal == []


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_full_disk_in_the_middle_of_a_record_in_parts_cuts_all_of_it_off(
    running: Running, part: int
) -> None:
    running.append(request(entry(1)))
    path = running.settings.wal_dir / running.names[0]
    before = path.read_bytes()
    large = request(make_entry(command_data=bytes(1 << 20)))
    writes = 0

    def fail(call: Call) -> Exception | None:
        nonlocal writes
        if call.operation != "write":
            return None
        writes += 1
        return ShortWrite(errno.ENOSPC, 1) if writes == part else None

    running.files.fault = fail
    assert [type(outcome) for outcome in running.append(large)] == [DiskFull]
    assert path.read_bytes() == before
    running.files.fault = lambda call: None
    outcome = appended(running.append(large)[0])
    assert outcome.wal_offset == batches(running.settings)[-1].end == path.stat().st_size
    assert len(read_commands(running.settings.wal_dir)) == 2


def test_what_a_full_disk_cut_off_can_not_come_back_behind_the_next_segment(
    running: Running,
) -> None:
    running.files.fault = lambda call: (
        ShortWrite(errno.ENOSPC, 100) if call.operation == "write" else None
    )
    running.append(fresh())
    operations = [operation for operation in running.files.operations() if operation != "deliver"]
    assert operations[-3:] == ["write", "truncate", "sync"]


def test_a_full_disk_fails_whoever_leaned_on_the_record_and_nobody_else(running: Running) -> None:
    known = appended(running.append(request(entry(1)))[0])
    running.files.fault = no_room
    outcomes = running.append(
        request(entry(2)),
        request(entry(2)),
        request(entry(2, order_id=9)),
        request(entry(1), entry(2)),
        request(entry(1)),
        request(entry(1, order_id=9)),
        request(entry(3), entry(3, order_id=9)),
    )
    assert [type(outcome) for outcome in outcomes] == [
        *[DiskFull] * 4,
        Appended,
        RequestConflict,
        RequestConflict,
    ]
    assert appended(outcomes[4]).wal_offset == known.wal_offset
    running.files.fault = lambda call: None
    retried = running.append(request(entry(2, order_id=9)))
    assert appended(retried[0]).first_command_id == 2


def test_a_barrier_is_reached_in_spite_of_a_full_disk(running: Running) -> None:
    known = appended(running.append(fresh())[0])
    running.files.fault = no_room
    running.hold()
    reached: list[Outcome] = []
    running.writer.submit(fresh(), lambda _: None)
    running.writer.barrier(reached.append)
    running.release()
    wait_for(lambda: reached, "the barrier is reached")
    assert reached == [Reached(known.wal_offset)]


@pytest.mark.parametrize("operation", ["create", "write", "rename"])
def test_no_room_for_a_new_segment_leaves_the_old_one_in_use(
    tmp_path: Path, files: WatchedFiles, operation: str
) -> None:
    running = started(tmp_path, files, 64 * 1024)
    big = request(make_entry(command_data=b"x" * 40_000))
    running.append(big)
    end = running.passes[-1].end_offset
    draft = segment_name(end) + (".tmp" if operation != "rename" else "")

    def no_segment(call: Call) -> Exception | None:
        return os_error(errno.ENOSPC) if call[:2] == (operation, draft) else None

    files.fault = no_segment
    refused = running.append(request(make_entry(command_data=b"y" * 40_000)))
    assert isinstance(refused[0], DiskFull)
    assert len(running.names) == 1
    small = appended(running.append(fresh())[0])
    assert len(running.names) == 1
    files.fault = lambda call: None
    large = appended(running.append(request(make_entry(command_data=b"y" * 40_000)))[0])
    running.writer.close()
    assert running.names == [segment_name(0), segment_name(small.wal_offset)]
    assert (small.first_command_id, large.first_command_id) == (2, 3)
    assert len(read_commands(running.settings.wal_dir)) == 3
    open_wal(running.settings).log.close()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("left", range(4))
def test_no_descriptors_for_a_new_segment_leave_the_old_one_in_use(
    tmp_path: Path, left: int, code: int
) -> None:
    """However few there are: once it has its name, none is needed that could be gone by then."""
    files = FewDescriptors(code)
    running = started(tmp_path, files, 64 * 1024)
    running.append(request(make_entry(command_data=b"x" * 40_000)))
    files.left = left
    large = request(make_entry(command_data=b"y" * 40_000))
    outcome = running.append(large)[0]
    if left < DESCRIPTORS_OF_A_SEGMENT:
        assert isinstance(outcome, Unavailable)
        reason = f"no file descriptors are left for a new segment: {os.strerror(code)}"
        assert str(outcome) == reason
        assert len(running.names) == 1
        appended(running.append(fresh())[0])
        files.left = DESCRIPTORS_OF_A_SEGMENT
        outcome = running.append(large)[0]
    assert appended(outcome).count == 1
    assert running.fatal == []
    running.writer.close()
    assert len(running.names) == 2
    open_wal(running.settings).log.close()


def test_a_new_segment_whose_name_could_not_be_synced_is_fatal(
    tmp_path: Path, files: WatchedFiles
) -> None:
    """The old segment must not grow past the beginning of the new one, for want of room or not."""
    running = started(tmp_path, files, 64 * 1024)
    running.append(request(make_entry(command_data=b"x" * 40_000)))
    files.fault = lambda call: (
        os_error(errno.ENOSPC) if call.operation == "sync directory" else None
    )
    answers = running.submit(request(make_entry(command_data=b"y" * 40_000)))
    assert isinstance(running.wait_fatal(), WalFailed)
    assert answers == [[]]
    running.writer.close()


# -- fatal errors ---------------------------------------------------------------------------------


def fails(operation: str, code: int) -> Any:
    return lambda call: os_error(code) if call.operation == operation else None


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("write", errno.EIO),
        ("write", errno.EFBIG),
        ("write", errno.EROFS),
        ("sync", errno.EIO),
        ("sync", errno.ENOSPC),
        ("sync", errno.EDQUOT),
    ],
)
def test_any_other_failure_is_fatal_and_nothing_is_delivered(
    running: Running, operation: str, code: int
) -> None:
    known = fresh()
    running.append(known)
    running.files.fault = fails(operation, code)
    answers = running.submit(fresh(), known, fresh(2))
    error = running.wait_fatal()
    assert isinstance(error, WalFailed)
    assert running.names[0] in str(error)
    assert answers == [[], [], []], "not even a duplicate may be acknowledged by then"
    assert len(running.fatal) == 1
    assert len(running.passes) == 1


def test_a_failed_sync_is_not_tried_again(running: Running) -> None:
    running.files.fault = fails("sync", errno.EIO)
    running.submit(fresh())
    running.wait_fatal()
    assert running.files.operations().count("sync") == 1


def test_a_failed_cut_is_fatal(running: Running) -> None:
    def fault(call: Call) -> Exception | None:
        codes = {"write": errno.ENOSPC, "truncate": errno.EIO}
        return os_error(codes[call.operation]) if call.operation in codes else None

    running.files.fault = fault
    answers = running.submit(fresh())
    assert isinstance(running.wait_fatal(), WalFailed)
    assert answers == [[]]


def test_an_unlinked_segment_is_fatal(running: Running) -> None:
    running.append(fresh())
    (running.settings.wal_dir / running.names[0]).unlink()
    answers = running.submit(fresh())
    assert "unlinked" in str(running.wait_fatal())
    assert answers == [[]]


def test_a_replaced_segment_is_fatal(running: Running) -> None:
    running.append(fresh())
    path = running.settings.wal_dir / running.names[0]
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)
    answers = running.submit(fresh())
    assert "replaced" in str(running.wait_fatal())
    assert answers == [[]]


def test_a_defect_is_fatal_too(running: Running) -> None:
    def fault(call: Call) -> Exception | None:
        return InvariantError("a defect") if call.operation == "write" else None

    running.files.fault = fault
    answers = running.submit(fresh())
    assert isinstance(running.wait_fatal(), InvariantError)
    assert answers == [[]]


# -- segments -------------------------------------------------------------------------------------


def rolled(directory: Path, files: WatchedFiles, sizes: Sequence[int]) -> Running:
    running = started(directory, files, 64 * 1024)
    for size in sizes:
        running.append(request(make_entry(command_data=b"x" * size)))
    running.writer.close()
    return running


def test_a_segment_begins_with_a_durable_genesis_before_the_first_batch_in_it(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = rolled(tmp_path, files, [40_000, 40_000])
    records = list(read_wal(running.settings.wal_dir))
    kinds = [record.content["kind"] for record in records]
    assert kinds == ["genesis", "batch", "genesis", "batch"]
    assert running.names == [segment_name(0), segment_name(records[1].end)]
    genesis = records[2].content
    assert genesis["first_command_id"] == 2
    assert genesis["wal_id"] == records[0].content["wal_id"]
    assert genesis["environment"] == running.settings.environment
    name = running.names[1]
    steps = [call[:2] for call in files.calls if call.operation not in {"allocate", "truncate"}]
    at = steps.index(("create", f"{name}.tmp"))
    assert steps[at : at + 7] == [
        ("create", f"{name}.tmp"),
        ("write", f"{name}.tmp"),
        ("sync", f"{name}.tmp"),
        ("rename", name),
        ("sync directory", "wal"),
        ("write", name),
        ("sync", name),
    ]


def test_a_record_larger_than_a_segment_gets_one_of_its_own(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = rolled(tmp_path, files, [10, 200_000, 10, 10])
    per_segment = [0] * len(running.names)
    for record in batches(running.settings):
        per_segment[running.names.index(record.segment.name)] += 1
    assert per_segment == [1, 1, 2]
    assert len(read_commands(running.settings.wal_dir)) == 4


def test_no_segment_grows_beyond_its_size_by_more_than_one_large_record(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = rolled(tmp_path, files, [20_000] * 12)
    sizes = [(running.settings.wal_dir / name).stat().st_size for name in running.names]
    assert max(sizes) <= 64 * 1024
    assert len(sizes) == 4


def test_space_is_reserved_ahead_and_doing_without_is_no_failure(
    tmp_path: Path, files: WatchedFiles
) -> None:
    files.fault = fails("allocate", errno.EOPNOTSUPP)
    running = rolled(tmp_path, files, [40_000, 40_000])
    assert running.fatal == []
    assert len(read_commands(running.settings.wal_dir)) == 2
    name = running.names[1]
    genesis = next(each for each in read_wal(running.settings.wal_dir) if each.segment.name == name)
    size = genesis.end - genesis.offset
    assert Call("allocate", name, size, 64 * 1024 - size) in files.calls


def test_a_restart_goes_on_in_the_last_segment_with_the_next_id(tmp_path: Path) -> None:
    running = rolled(tmp_path, WatchedFiles(), [40_000, 40_000])
    again = Running(running.settings, WatchedFiles())
    outcome = appended(again.append(fresh())[0])
    again.writer.close()
    assert outcome.first_command_id == 3
    assert again.names == running.names
    assert list(read_commands(running.settings.wal_dir)) == [1, 2, 3]
    assert FileSystem().size_of(running.settings.wal_dir / running.names[1]) < 64 * 1024
