"""The writer: one record a pass, duplicates and conflicts, the queue and its end."""

from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from app.errors import RequestConflict, Unavailable
from app.model.codec import PreparedRequest, pack
from app.model.packing import pack_array
from app.wal.writer import Appended, Duplicate, Outcome, Reached
from tests.support.faulty_files import Call, WatchedFiles
from tests.support.journal_entries import make_entry
from tests.support.running_writer import Running, appended, batches, entry, fresh, request, started
from tests.support.waiting import wait_for
from tests.support.wal_files import make_settings, read_commands

# -- group commit ---------------------------------------------------------------------------------


def test_all_that_waits_becomes_one_record_and_is_answered_after_one_sync(
    running: Running,
) -> None:
    requests = [fresh(2), fresh(1), fresh(3)]
    outcomes = [appended(outcome) for outcome in running.append(*requests)]
    (record,) = batches(running.settings)
    assert len(record.content["commands"]) == 6
    ids = [(each.first_command_id, each.last_command_id) for each in outcomes]
    assert ids == [(1, 2), (3, 3), (4, 6)]
    assert [each.count for each in outcomes] == [2, 1, 3]
    assert {each.wal_offset for each in outcomes} == {record.end}
    assert [each.duplicates for each in outcomes] == [[]] * 3
    uuids = [each.request_uuid for one in requests for each in one.entries]
    assert list(read_commands(running.settings.wal_dir).values()) == uuids


def test_nothing_of_a_request_is_kept_once_it_is_answered(running: Running) -> None:
    body = bytearray(bytes(pack_array(1, [pack([entry(1)])])))
    running.append(PreparedRequest([1], memoryview(body), [entry(1)]))
    running.passes.clear()

    def is_free() -> bool:
        with suppress(BufferError):
            body.clear()
        return not body

    wait_for(is_free, "nobody holds the body any more")


def test_nothing_is_delivered_before_the_record_is_written_and_synced(running: Running) -> None:
    running.append(fresh())
    running.append(fresh())
    name = running.names[0]
    steps = [call.operation for call in running.files.calls if call.name in {name, ""}]
    assert steps == ["write", "sync", "deliver"] * 2


def test_the_index_gains_an_entry_only_after_its_sync(running: Running) -> None:
    seen: list[bool] = []
    new = fresh()

    def watch(call: Call) -> None:
        if call.operation == "sync":
            seen.append(running.writer.index.unseen(new.keys))

    running.files.fault = watch
    running.append(new)
    assert seen == [True]
    assert not running.writer.index.unseen(new.keys)


def test_command_ids_and_offsets_go_on_from_record_to_record(running: Running) -> None:
    outcomes = [appended(running.append(fresh(count))[0]) for count in (1, 3, 2)]
    assert [each.first_command_id for each in outcomes] == [1, 2, 5]
    assert [each.wal_offset for each in outcomes] == [
        record.end for record in batches(running.settings)
    ]


def test_a_pass_reports_what_it_took(running: Running) -> None:
    one = fresh(2)
    running.append(one, one, fresh())
    (committed,) = running.passes
    assert (committed.entries, committed.duplicates) == (3, 2)
    assert committed.end_offset == batches(running.settings)[-1].end
    assert committed.append_s >= committed.sync_s > 0


def test_a_batch_takes_no_further_request_once_it_is_full_and_splits_none(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = started(tmp_path, files, 1 << 20, max_batch_entries=3)
    running.append(fresh(2), fresh(5), fresh(1), fresh(1), fresh(1), fresh(1))
    running.writer.close()
    assert [len(each.content["commands"]) for each in batches(running.settings)] == [7, 3, 1]


def test_a_batch_takes_no_further_request_once_it_has_enough_bytes(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = started(tmp_path, files, 1 << 20, max_batch_bytes=fresh().size_bytes + 1)
    running.append(fresh(), fresh(), fresh())
    running.writer.close()
    assert [len(each.content["commands"]) for each in batches(running.settings)] == [2, 1]


def test_a_barrier_is_reached_once_all_before_it_is_durable(running: Running) -> None:
    running.hold()
    reached: list[Outcome] = []
    answer: list[Outcome] = []
    running.writer.submit(fresh(), answer.append)
    running.writer.barrier(reached.append)
    running.release()
    wait_for(lambda: reached, "the barrier is reached")
    assert reached == [Reached(batches(running.settings)[-1].end)]
    assert answer


# -- duplicates and conflicts ---------------------------------------------------------------------


def test_a_repeated_request_writes_nothing_and_is_answered_with_its_first_record(
    running: Running,
) -> None:
    one, other = request(entry(1), entry(2)), request(entry(3))
    first = appended(running.append(one)[0])
    running.append(other)
    size = sum(len(record.payload) for record in batches(running.settings))
    again = appended(running.append(one)[0])
    assert again == Appended(
        count=2,
        first_command_id=None,
        last_command_id=None,
        wal_offset=first.wal_offset,
        duplicates=[Duplicate(UUID(int=1), 1), Duplicate(UUID(int=2), 2)],
    )
    assert sum(len(record.payload) for record in batches(running.settings)) == size


def test_duplicates_of_several_records_are_answered_with_the_end_of_the_last_of_them(
    running: Running,
) -> None:
    ends = [appended(running.append(request(entry(n)))[0]).wal_offset for n in (1, 2, 3)]
    again = appended(running.append(request(entry(2), entry(1)))[0])
    assert again.wal_offset == ends[1]


def test_the_end_of_a_duplicate_is_right_even_if_the_same_pass_evicts_it(
    tmp_path: Path, files: WatchedFiles
) -> None:
    settings = make_settings(tmp_path, allow_new_wal=True, dedup_window=1)
    running = Running(settings, files)
    first = appended(running.append(request(entry(1)))[0])
    again, _ = running.append(request(entry(1)), fresh(3))
    running.writer.close()
    assert appended(again).wal_offset == first.wal_offset
    assert appended(again).duplicates == [Duplicate(UUID(int=1), 1)]


def test_new_entries_beside_duplicates_get_consecutive_ids(running: Running) -> None:
    running.append(request(entry(1), entry(2)))
    mixed = request(entry(3), entry(1), entry(4), entry(2), entry(5))
    outcome = appended(running.append(mixed)[0])
    assert (outcome.count, outcome.first_command_id, outcome.last_command_id) == (5, 3, 5)
    assert outcome.duplicates == [Duplicate(UUID(int=1), 1), Duplicate(UUID(int=2), 2)]
    assert outcome.wal_offset == batches(running.settings)[-1].end
    assert [uuid.int for uuid in read_commands(running.settings.wal_dir).values()] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_a_duplicate_in_the_same_batch_shares_the_record(running: Running) -> None:
    one, other = running.append(request(entry(7)), request(entry(8), entry(7)))
    assert appended(one).duplicates == []
    assert appended(other).duplicates == [Duplicate(UUID(int=7), 1)]
    assert (appended(other).first_command_id, appended(other).last_command_id) == (2, 2)
    assert appended(other).wal_offset == appended(one).wal_offset
    assert len(read_commands(running.settings.wal_dir)) == 2


def test_a_request_of_nothing_but_duplicates_of_the_same_batch_waits_for_it(
    running: Running,
) -> None:
    one, other = running.append(fresh(), fresh())
    again = request(entry(7))
    one, other = running.append(again, again)
    assert appended(other) == Appended(
        count=1,
        first_command_id=None,
        last_command_id=None,
        wal_offset=appended(one).wal_offset,
        duplicates=[Duplicate(UUID(int=7), 3)],
    )


def test_a_duplicate_in_the_same_request_is_journaled_once(running: Running) -> None:
    outcome = appended(running.append(request(entry(1), entry(1), entry(2)))[0])
    assert (outcome.count, outcome.first_command_id, outcome.last_command_id) == (3, 1, 2)
    assert outcome.duplicates == [Duplicate(UUID(int=1), 1)]
    assert len(read_commands(running.settings.wal_dir)) == 2


def conflict(outcome: Outcome) -> RequestConflict:
    assert isinstance(outcome, RequestConflict), outcome
    return outcome


def test_other_content_under_a_known_uuid_is_a_conflict_and_nothing_of_it_is_written(
    running: Running,
) -> None:
    running.append(request(entry(1)))
    outcome = conflict(running.append(request(entry(2), entry(1, order_id=9)))[0])
    (fault,) = outcome.faults
    assert (fault.entry, fault.path) == (1, "request_uuid")
    assert str(UUID(int=1)) in fault.message
    assert "other content" in str(outcome)
    assert len(read_commands(running.settings.wal_dir)) == 1
    assert appended(running.append(request(entry(2)))[0]).first_command_id == 2


def test_a_conflict_in_the_same_batch_takes_nothing_into_the_record(running: Running) -> None:
    """Entry 2 of the refused request stays free for the request after it, with other content."""
    outcomes = running.append(
        request(entry(1)),
        request(entry(2), entry(1, order_id=9)),
        request(entry(2, order_id=5), entry(3)),
    )
    assert conflict(outcomes[1]).faults[0].entry == 1
    assert appended(outcomes[2]).duplicates == []
    assert (appended(outcomes[2]).first_command_id, appended(outcomes[2]).last_command_id) == (2, 3)
    assert [uuid.int for uuid in read_commands(running.settings.wal_dir).values()] == [1, 2, 3]


def test_a_conflict_within_the_request_names_the_later_entry(running: Running) -> None:
    outcome = conflict(running.append(request(entry(1), entry(2), entry(1, order_id=9)))[0])
    assert [fault.entry for fault in outcome.faults] == [2]
    assert read_commands(running.settings.wal_dir) == {}


def test_at_most_100_conflicts_are_listed(running: Running) -> None:
    running.append(request(*map(entry, range(150))))
    changed = request(*(entry(number, order_id=1) for number in range(150)))
    assert len(conflict(running.append(changed)[0]).faults) == 100


def test_duplicates_are_known_after_a_restart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, allow_new_wal=True)
    one = request(entry(1), entry(2))
    running = Running(settings, WatchedFiles())
    first = appended(running.append(one)[0])
    running.writer.close()
    again = Running(settings, WatchedFiles())
    outcomes = again.append(one, request(entry(2, order_id=1)), request(entry(3)))
    again.writer.close()
    assert appended(outcomes[0]).wal_offset == first.wal_offset
    assert [each.command_id for each in appended(outcomes[0]).duplicates] == [1, 2]
    conflict(outcomes[1])
    assert appended(outcomes[2]).first_command_id == 3


# -- the queue ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_by_entries(tmp_path: Path, files: WatchedFiles) -> None:
    running = started(tmp_path, files, 1 << 20, queue_entries=3)
    running.hold()
    running.writer.submit(fresh(2), lambda _: None)
    running.writer.submit(fresh(1), lambda _: None)
    assert running.writer.waiting_entries == 3
    with pytest.raises(Unavailable, match="the queue is full: 3 entries"):
        running.writer.submit(fresh(1), lambda _: None)
    running.release()
    wait_for(lambda: running.writer.waiting_entries == 0, "the queue is empty")
    running.append(fresh(3))
    running.writer.close()
    assert len(read_commands(running.settings.wal_dir)) == 6


def test_a_full_queue_refuses_by_bytes(tmp_path: Path, files: WatchedFiles) -> None:
    size = fresh().size_bytes
    running = started(tmp_path, files, 1 << 20, queue_bytes=2 * size)
    running.hold()
    running.writer.submit(fresh(), lambda _: None)
    running.writer.submit(fresh(), lambda _: None)
    with pytest.raises(Unavailable, match=f"{2 * size} bytes"):
        running.writer.submit(fresh(), lambda _: None)
    running.release()
    running.writer.close()


def test_an_empty_queue_admits_any_request(tmp_path: Path, files: WatchedFiles) -> None:
    running = started(tmp_path, files, 1 << 20, queue_entries=1, queue_bytes=1)
    assert appended(running.append(fresh(50))[0]).count == 50
    assert appended(running.append(fresh(50))[0]).count == 50
    running.writer.close()


def test_closing_makes_durable_and_answers_what_is_queued(
    tmp_path: Path, files: WatchedFiles
) -> None:
    running = started(tmp_path, files, 1 << 20, max_batch_entries=2)
    running.hold()
    answers: list[list[Outcome]] = [[] for _ in range(5)]
    for answer in answers:
        running.writer.submit(fresh(), answer.append)
    running.writer.refuse("shutting down")
    with pytest.raises(Unavailable, match="shutting down"):
        running.writer.submit(fresh(), lambda _: None)
    running.release()
    running.writer.close()
    assert [appended(answer[0]).first_command_id for answer in answers] == [1, 2, 3, 4, 5]
    assert len(read_commands(running.settings.wal_dir)) == 5


def test_a_closed_writer_refuses(tmp_path: Path, files: WatchedFiles) -> None:
    running = started(tmp_path, files, 1 << 20)
    running.writer.close()
    with pytest.raises(Unavailable, match="shutting down"):
        running.writer.submit(fresh(), lambda _: None)


def test_uuids_of_any_size_are_told_apart(running: Running) -> None:
    uuids = [UUID(int=0), UUID(int=2**128 - 1), uuid4()]
    running.append(request(*(make_entry(request_uuid=uuid) for uuid in uuids)))
    assert list(read_commands(running.settings.wal_dir).values()) == uuids
