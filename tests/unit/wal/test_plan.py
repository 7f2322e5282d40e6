"""Repeated entries are told from other content by what the log holds, whatever was sent."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import msgpack
import pytest
from msgspec import Raw

from app.errors import CorruptionError, RequestConflict, Unavailable
from app.model.codec import PreparedRequest, RequestCodec
from app.wal.dedup import DuplicateIndex
from app.wal.plan import Plan, Planner
from tests.support.http_entries import msgpack_entry
from tests.support.journal_entries import make_entry
from tests.support.nesting import below_calls, nested_entry
from tests.support.running_writer import request

codec = RequestCodec(max_entries=2000, max_field_bytes=4096)
# Where it can be read, and where it can't.
NESTED: Final = 900
# No two records of this size are kept together.
LARGE_BYTES: Final = 4 << 20
NESTED_TOO_DEEPLY: Final = 200_000


class Recorded:
    """Records that are durable, each at an offset of its own; `reads` says which were read back."""

    def __init__(self) -> None:
        self.index = DuplicateIndex(10_000)
        self.commands: dict[int, list[Raw]] = {}
        self.end = 0
        self.reads: list[int] = []
        self.failure: Exception | None = None
        self.planner = Planner(self.index, self.read)

    def add(self, first_command_id: int, prepared: PreparedRequest, size_bytes: int = 1000) -> None:
        offset = self.end
        unpacker = msgpack.Unpacker()
        unpacker.feed(prepared.packed)
        self.commands[offset] = [Raw(msgpack.packb(each)) for each in unpacker]
        self.end += size_bytes
        self.index.add(offset, self.end, first_command_id, prepared.keys)

    def read(self, offset: int) -> Sequence[Raw]:
        self.reads.append(offset)
        if self.failure is not None:
            raise self.failure
        return self.commands[offset]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def sent(**fields: object) -> PreparedRequest:
    body = {"request_uuid": UUID(int=1).bytes, **fields}
    return codec.prepare(msgpack.packb({"entries": [msgpack_entry(**body)]}), json=False)


def test_the_same_content_in_another_spelling_is_a_duplicate(recorded: Recorded) -> None:
    symbols = {"a": 1, "b": 2}
    recorded.add(7, sent(pre_digest={"symbols": symbols}))
    again = sent(
        order_id=None,
        post_digest={"l2_seq": 0},
        events=[],
        pre_digest={"l2_seq": 0, "symbols": dict(reversed(symbols.items()))},
    )
    verdict = recorded.planner.place(again, plan := Plan(50))
    assert (verdict.taken, verdict.repeated, verdict.refusal) == (0, [(0, 7)], None)
    assert (verdict.needs_record, verdict.end_offset) == (False, 1000)
    assert plan.keys == []


def test_other_content_is_a_conflict_and_nothing_of_its_request_is_taken(
    recorded: Recorded,
) -> None:
    recorded.add(7, sent())
    changed = request(make_entry(), *sent(order_id=1).entries)
    verdict = recorded.planner.place(changed, plan := Plan(50))
    assert isinstance(verdict.refusal, RequestConflict)
    assert [fault.entry for fault in verdict.refusal.faults] == [1]
    assert plan.keys == []
    assert plan.pending == {}


def test_new_entries_among_duplicates_are_taken_in_order(recorded: Recorded) -> None:
    one, two, three, four = (make_entry() for _ in range(4))
    recorded.add(7, request(two, four))
    mixed = request(one, two, three, four, three)
    verdict = recorded.planner.place(mixed, plan := Plan(50))
    assert (verdict.taken, verdict.first_command_id) == (2, 50)
    assert verdict.repeated == [(1, 7), (3, 8), (4, 51)]
    assert plan.entries == [one, three]
    assert plan.packed == [request(one, three).packed]
    assert verdict.needs_record


def test_a_request_that_is_sent_again_reads_its_record_once(recorded: Recorded) -> None:
    entries = [make_entry() for _ in range(100)]
    recorded.add(1, request(*entries))
    for entry in entries:
        assert recorded.planner.place(request(entry), Plan(200)).repeated
    assert recorded.reads == [0]


def test_entries_of_many_large_records_are_looked_at_record_by_record(recorded: Recorded) -> None:
    """In whatever order they come: each record may be as large as a body."""
    lives = [[make_entry() for _ in range(5)] for _ in range(8)]
    for number, entries in enumerate(lives):
        recorded.add(1 + 5 * number, request(*entries), LARGE_BYTES)
    mixed = [entries[at] for at in reversed(range(5)) for entries in lives]
    verdict = recorded.planner.place(request(*mixed), Plan(200))
    earlier = [1 + 5 * number + at for at in reversed(range(5)) for number in range(8)]
    assert verdict.repeated == list(enumerate(earlier))
    assert recorded.reads == [number * LARGE_BYTES for number in range(8)]


def test_a_large_record_is_not_kept_and_small_ones_are_up_to_a_bound(recorded: Recorded) -> None:
    first, *small, large = (make_entry() for _ in range(6))
    for number, entry in enumerate((first, *small)):
        recorded.add(1 + number, request(entry), LARGE_BYTES // 4)
    recorded.add(6, request(large), LARGE_BYTES + 1)
    for entry in (first, *small, *small):
        assert recorded.planner.place(request(entry), Plan(200)).repeated
    assert len(recorded.reads) == 5
    for entry in (large, large, small[0]):
        assert recorded.planner.place(request(entry), Plan(200)).repeated
    assert len(recorded.reads) == 8


@pytest.mark.parametrize(
    "failure", [OSError(24, "Too many open files"), CorruptionError("0.wal", 0, "wrong CRC")]
)
def test_when_the_log_cannot_be_read_back_the_request_is_refused_for_now(
    recorded: Recorded, failure: Exception
) -> None:
    """Neither a duplicate nor a conflict can be told then; the rest of the batch goes on."""
    recorded.add(7, sent())
    recorded.failure = failure
    plan = Plan(50)
    verdict = recorded.planner.place(sent(), plan)
    assert isinstance(verdict.refusal, Unavailable)
    assert not verdict.needs_record
    assert recorded.planner.place(request(make_entry()), plan).taken == 1
    recorded.failure = None
    assert recorded.planner.place(sent(), plan).repeated == [(0, 7)]


def test_what_no_client_could_have_sent_is_compared_as_deeply_as_it_can_be_read(
    recorded: Recorded,
) -> None:
    recorded.add(7, sent())
    recorded.commands[0] = [Raw(nested_entry(NESTED, request_uuid=UUID(int=1)))]
    verdict = below_calls(90, lambda: recorded.planner.place(sent(), Plan(50)))
    assert isinstance(verdict.refusal, RequestConflict)


@pytest.mark.parametrize(
    "command",
    [
        nested_entry(NESTED_TOO_DEEPLY, request_uuid=UUID(int=1)),
        msgpack.packb(msgpack_entry(request_uuid=UUID(int=1), command_type="MARK")).replace(
            b"MARK", b"\xff\xfe\xfd\xfc"
        ),
    ],
    ids=["nested too deeply", "text that is no UTF-8"],
)
def test_what_no_client_could_have_sent_and_can_not_be_read_refuses_what_repeats_it(
    recorded: Recorded, command: bytes
) -> None:
    """The rest of the batch goes on."""
    recorded.add(7, sent())
    recorded.commands[0] = [Raw(command)]
    plan = Plan(50)
    verdict = recorded.planner.place(sent(), plan)
    assert isinstance(verdict.refusal, Unavailable)
    assert recorded.planner.place(request(make_entry()), plan).taken == 1
