"""The decision table of protocol section 5: segments and checkpoints. One test a row."""

from pathlib import Path

import pytest

from tests.support.recovery_outcomes import (
    assert_names,
    opened,
    refusal,
    refused_start,
    tolerant,
)
from tests.support.wal_files import (
    WrittenWal,
    make_settings,
    patch,
    progress_at,
    truncate,
    write_wal,
)


@pytest.fixture
def wal(tmp_path: Path) -> WrittenWal:
    """Two segments of three batches each, of two entries each; the tail is strict."""
    return write_wal(make_settings(tmp_path), [[2, 2, 2], [2, 2, 2]])


# -- segments -------------------------------------------------------------------------------------


def test_a_segment_missing_between_two_others_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1], [1]])
    wal.genesis[1].path.unlink()
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[0].path.name, wal.records[0].end)
    assert wal.genesis[2].path.name in error.reason
    assert "missing" in error.reason


def test_a_first_segment_that_should_be_kept_but_is_missing_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1], [1]])
    wal.checkpoint(wal.records[0].offset)
    wal.genesis[0].path.unlink()
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[1].path.name, wal.genesis[1].offset)
    assert "should be kept from offset 0" in error.reason


def test_offsets_that_leave_a_gap_are_refused(wal: WrittenWal) -> None:
    truncate(wal.genesis[0].path, wal.records[2].at)
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[0].path.name, wal.records[2].offset)


def test_offsets_that_overlap_are_refused(wal: WrittenWal) -> None:
    with wal.genesis[0].path.open("ab") as file:
        file.write(b"more")
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[1].path.name, wal.genesis[1].offset)
    assert "overlaps" in error.reason


def test_a_segment_of_another_log_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1]], {1: {"wal_id": "b" * 32}})
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[1].path.name, wal.genesis[1].offset)
    assert "b" * 32 in error.reason


def test_a_segment_of_another_log_before_the_retained_offset_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1], [1]], {1: {"wal_id": "b" * 32}})
    wal.checkpoint(wal.end, retained_offset=wal.records[2].offset)
    assert refusal(wal).segment == wal.genesis[1].path.name


def test_a_segment_of_another_environment_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1]], {1: {"environment": "other"}})
    error = refusal(wal)
    assert error.segment == wal.genesis[1].path.name
    assert "'other'" in error.reason


def test_a_log_of_another_environment_is_refused(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1]], {0: {"environment": "other"}})
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[0].path.name, 0)
    assert "'other'" in error.reason


@pytest.mark.parametrize("index", [0, 1])
def test_a_segment_of_another_format_is_refused(tmp_path: Path, index: int) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1]], {index: {"format": 2}})
    error = refusal(wal)
    assert (error.segment, error.offset) == (
        wal.genesis[index].path.name,
        wal.genesis[index].offset,
    )
    assert "format 2" in error.reason


def test_a_checkpoint_of_another_log_is_refused(wal: WrittenWal) -> None:
    wal.checkpoint(0, wal_id="c" * 32)
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[0].path.name, 0)
    assert "c" * 32 in error.reason


def test_a_checkpoint_of_another_environment_is_refused(wal: WrittenWal) -> None:
    wal.checkpoint(0, environment="other")
    assert "'other'" in refused_start(wal)


def test_a_checkpoint_into_the_middle_of_a_record_is_refused(wal: WrittenWal) -> None:
    record = wal.records[1]
    wal.checkpoint(record.end - 1)
    assert_names(refusal(wal), record, str(record.end - 1))


def test_a_checkpoint_into_the_middle_of_the_genesis_is_refused(wal: WrittenWal) -> None:
    wal.checkpoint(5)
    assert_names(refusal(wal), wal.genesis[0], "middle of this record")


def test_a_progress_row_into_the_middle_of_a_record_is_refused(wal: WrittenWal) -> None:
    record = wal.records[1]
    wal.checkpoint(wal.records[0].end)
    error = refusal(wal, progress=progress_at(record.end - 1))
    assert_names(error, record, "middle of this record")


def test_a_retained_offset_into_the_middle_of_a_record_is_refused(wal: WrittenWal) -> None:
    wal.checkpoint(wal.end, retained_offset=wal.records[1].offset + 3)
    assert refusal(wal).offset == wal.records[1].offset + 3


def test_a_progress_row_of_another_log_is_no_evidence_and_left_to_replication(
    wal: WrittenWal,
) -> None:
    wal.checkpoint(wal.records[0].end)
    log = opened(wal, progress=progress_at(2**40, 99, wal_id="d" * 32))
    assert log.checkpoint.wal_offset == wal.records[0].end
    assert log.next_command_id == 13


# -- checkpoint missing or torn -------------------------------------------------------------------


TORN = {"missing": None, "empty": b"", "cut": b'{"wal_id": "aa", "wal_', "binary": b"\xff\0\xfe"}
lost_checkpoint = pytest.mark.parametrize("torn", TORN.values(), ids=TORN)


def lose_checkpoint(wal: WrittenWal, torn: bytes | None) -> None:
    path = wal.settings.checkpoint_path
    path.unlink(missing_ok=True)
    if torn is not None:
        path.write_bytes(torn)


def give_back(wal: WrittenWal, offset: int) -> None:
    """Give everything before an offset back by hand: unlink the first segment, punch the second."""
    for genesis in wal.genesis:
        following = [other.offset for other in wal.genesis if other.offset > genesis.offset]
        if following and following[0] <= offset:
            genesis.path.unlink()
        elif genesis.end < offset:
            patch(genesis.path, genesis.size, bytes(offset - genesis.end))


@lost_checkpoint
def test_without_a_checkpoint_the_progress_row_is_taken(
    wal: WrittenWal, torn: bytes | None
) -> None:
    lose_checkpoint(wal, torn)
    log = opened(wal, progress=progress_at(wal.records[3].end, 8))
    assert log.checkpoint.wal_offset == wal.records[3].end
    assert log.entries_to_replicate == 4
    assert log.next_command_id == 13


@lost_checkpoint
@pytest.mark.parametrize("kept_from", [2, 4])
def test_without_a_checkpoint_reading_begins_at_the_first_kept_record(
    wal: WrittenWal, torn: bytes | None, kept_from: int
) -> None:
    lose_checkpoint(wal, torn)
    give_back(wal, wal.records[kept_from].offset)
    log = opened(wal, progress=progress_at(wal.records[5].offset, 10))
    assert log.checkpoint.retained_offset == wal.records[kept_from].offset
    assert log.entries_to_replicate == 2
    assert log.next_command_id == 13
    assert len(log.index) == 2 * (6 - kept_from)


def test_without_a_checkpoint_the_progress_row_is_evidence(wal: WrittenWal) -> None:
    wal.cut(wal.end - 1)
    assert_names(refusal(wal, progress=progress_at(wal.end, 12)), wal.records[-1], "durable up to")


@lost_checkpoint
def test_without_a_checkpoint_a_log_that_begins_after_the_progress_row_is_refused(
    wal: WrittenWal, torn: bytes | None
) -> None:
    """What looks given back was never replicated: it was lost."""
    lose_checkpoint(wal, torn)
    give_back(wal, wal.records[2].offset)
    error = refusal(wal, progress=progress_at(wal.records[0].end, 2))
    assert error.offset == wal.genesis[0].end
    assert f"replicated up to {wal.records[0].end}" in error.reason


def test_without_a_checkpoint_damage_is_not_taken_for_what_was_given_back(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[2, 2], [2, 2, 2]])
    give_back(wal, wal.genesis[1].offset)
    wal.flip(wal.records[2].end - 1)
    error = refusal(wal, progress=progress_at(wal.end, 10))
    assert_names(error, wal.records[2], f"up to offset {wal.records[3].offset}")


@lost_checkpoint
@pytest.mark.parametrize("reachable", [True, False])
def test_without_any_progress_a_log_from_its_beginning_is_read_whole(
    wal: WrittenWal, torn: bytes | None, reachable: bool
) -> None:
    lose_checkpoint(wal, torn)
    log = opened(wal, reachable=reachable)
    assert log.checkpoint.wal_offset == 0
    assert log.entries_to_replicate == 12
    assert log.next_command_id == 13


@lost_checkpoint
@pytest.mark.parametrize("kept_from", [2, 4])
def test_without_any_progress_a_log_whose_beginning_was_given_back_is_refused(
    wal: WrittenWal, torn: bytes | None, kept_from: int
) -> None:
    lose_checkpoint(wal, torn)
    give_back(wal, wal.records[kept_from].offset)
    message = refused_start(wal, reachable=False)
    assert "the checkpoint is missing or torn" in message
    assert "the beginning of the log was given back" in message


def test_zeros_for_the_very_first_record_are_a_damaged_tail_once_postgres_says_it_has_nothing(
    tmp_path: Path,
) -> None:
    wal = write_wal(make_settings(tmp_path), [[2]])
    first = wal.records[0]
    wal.damage(first.offset, bytes(first.size))
    assert "start again with Postgres up" in refused_start(wal, reachable=False)
    assert "`journal wal repair` can cut it off" in refused_start(wal)
    log = opened(tolerant(wal))
    assert (log.log.end, log.next_command_id) == (first.offset, 1)


# -- a checkpoint that does not fit a log whose beginning was given back ---------------------------

punched = pytest.mark.parametrize("kept_from", [0, 2, 4])


@punched
def test_a_checkpoint_ahead_of_the_log_is_refused_whatever_was_given_back(
    wal: WrittenWal, kept_from: int
) -> None:
    kept = wal.records[kept_from].offset
    give_back(wal, kept)
    wal.checkpoint(wal.end + 1, retained_offset=kept if kept_from else 0)
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[1].path.name, wal.end)
    assert f"the checkpoint shows that it was durable up to {wal.end + 1}" in error.reason


@punched
@pytest.mark.parametrize("field", ["environment", "wal_id"])
def test_a_checkpoint_of_another_is_refused_whatever_was_given_back(
    wal: WrittenWal, kept_from: int, field: str
) -> None:
    kept = wal.records[kept_from].offset
    give_back(wal, kept)
    wal.checkpoint(wal.end, retained_offset=kept if kept_from else 0, **{field: "b" * 32})
    message = refused_start(wal) if field == "environment" else str(refusal(wal))
    assert "b" * 32 in message


# -- where the ids go on --------------------------------------------------------------------------


def test_command_ids_go_on_behind_what_the_checkpoint_and_the_progress_row_know(
    wal: WrittenWal,
) -> None:
    wal.checkpoint(wal.records[0].end, last_command_id=40)
    assert opened(wal, progress=progress_at(wal.records[1].end, 30)).next_command_id == 41
    assert opened(wal, progress=progress_at(wal.records[1].end, 50)).next_command_id == 51
