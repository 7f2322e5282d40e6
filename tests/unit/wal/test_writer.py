"""The writer: one record a pass, duplicates, a full disk, fatal errors, limits, the end."""

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.errors import DiskFull, InvariantError, RequestConflict, Unavailable, WalFailed
from app.model.codec import PreparedRequest, canonical_bytes, fingerprint
from app.model.entry import Entry
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.segments import segment_name
from app.wal.writer import Appended, Committed, Duplicate, Outcome, Reached, WalWriter
from tests.support.faulty_files import Call, ShortWrite, WatchedFiles, no_room, os_error
from tests.support.foreign_wal import read_wal
from tests.support.journal_entries import make_entry
from tests.support.wal_files import make_settings, open_wal, read_commands
from tests.support.waiting import wait_for

NO_LIMIT = 1 << 40


def request(*entries: Entry) -> PreparedRequest:
    bodies = [canonical_bytes(entry) for entry in entries]
    return PreparedRequest(
        list(entries),
        [entry.request_uuid.int for entry in entries],
        bodies,
        [fingerprint(body) for body in bodies],
        sum(map(len, bodies)),
    )


def fresh(count: int = 1) -> PreparedRequest:
    return request(*(make_entry() for _ in range(count)))


def entry(number: int, **fields: Any) -> Entry:
    return make_entry(request_uuid=UUID(int=number), **fields)


class Running:
    """A writer on a log of its own; `hold` keeps it from taking what is submitted meanwhile."""

    def __init__(self, settings: Settings, files: WatchedFiles, **limits: int) -> None:
        self.settings = settings
        self.files = files
        self.passes: list[Committed] = []
        self.fatal: list[BaseException] = []
        self._arrived, self._released = Event(), Event()
        self._released.set()
        opened = open_wal(settings, files=files)
        files.calls.clear()
        self.writer = WalWriter(
            opened.log,
            opened.index,
            next_command_id=opened.next_command_id,
            **{
                "max_batch_entries": 1000,
                "max_batch_bytes": NO_LIMIT,
                "queue_entries": 1000,
                "queue_bytes": NO_LIMIT,
                **limits,
            },
            deliver=self._deliver,
            on_fatal=self.fatal.append,
        )
        self.writer.start()

    def append(self, *requests: PreparedRequest) -> list[Outcome]:
        """What becomes of requests that all wait when the writer takes the first of them."""
        answers = self.submit(*requests)
        wait_for(lambda: all(answers), "every request is answered")
        return [answer[0] for answer in answers]

    def submit(self, *requests: PreparedRequest) -> list[list[Outcome]]:
        """Submit requests while the writer is held; returns where their outcomes will be."""
        self.hold()
        answers: list[list[Outcome]] = [[] for _ in requests]
        for each, answer in zip(requests, answers, strict=True):
            self.writer.submit(each, answer.append)
        self.release()
        return answers

    def hold(self) -> None:
        self._arrived.clear()
        self._released.clear()
        self.writer.barrier(lambda _: None)
        assert self._arrived.wait(10)

    def release(self) -> None:
        self._released.set()

    def wait_fatal(self) -> BaseException:
        wait_for(lambda: self.fatal, "the writer gives up")
        return self.fatal[0]

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.settings.wal_dir.glob("*.wal"))

    def _deliver(self, committed: Committed) -> None:
        held = not self._released.is_set()
        self._arrived.set()
        assert self._released.wait(10)
        if not held:
            self.files.calls.append(Call("deliver", ""))
            self.passes.append(committed)
        for submission, outcome in committed.outcomes:
            submission.deliver(outcome)


@pytest.fixture
def files() -> WatchedFiles:
    return WatchedFiles()


@pytest.fixture
def running(tmp_path: Path, files: WatchedFiles) -> Iterator[Running]:
    made = Running(make_settings(tmp_path, allow_new_wal=True), files)
    yield made
    files.fault = lambda call: None
    made.writer.close()


def started(directory: Path, files: WatchedFiles, segment_bytes: int, **limits: int) -> Running:
    settings = make_settings(directory, allow_new_wal=True, wal_segment_bytes=segment_bytes)
    return Running(settings, files, **limits)


def appended(outcome: Outcome) -> Appended:
    assert isinstance(outcome, Appended), outcome
    return outcome


def batches(settings: Settings) -> list[Any]:
    return [each for each in read_wal(settings.wal_dir) if each.content["kind"] == "batch"]


# -- group commit -------------------------------------------------------------------------------


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
        1, None, None, appended(one).wal_offset, [Duplicate(UUID(int=7), 3)]
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


# -- fatal errors -----------------------------------------------------------------------------------


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


# -- the queue ---------------------------------------------------------------------------------------


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


# -- segments ------------------------------------------------------------------------------------------


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


def test_uuids_of_any_size_are_told_apart(running: Running) -> None:
    uuids = [UUID(int=0), UUID(int=2**128 - 1), uuid4()]
    running.append(request(*(make_entry(request_uuid=uuid) for uuid in uuids)))
    assert list(read_commands(running.settings.wal_dir).values()) == uuids
