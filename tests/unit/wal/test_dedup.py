"""The duplicate index covers at least the newest entries of the window, across restarts too."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.model.entry import Entry
from app.wal.dedup import CoveredRecord, DuplicateIndex
from tests.support.journal_entries import make_entry
from tests.support.wal_files import make_settings, open_wal, write_wal


def add(index: DuplicateIndex, number: int, first_id: int, keys: Sequence[int]) -> None:
    """Add record `number`; records are 100 bytes long."""
    index.add(100 * number, 100 * number + 100, first_id, keys)


def filled(window: int, records: int, per_record: int = 1) -> DuplicateIndex:
    index = DuplicateIndex(window)
    for number in range(records):
        first = number * per_record + 1
        add(index, number, first, range(first, first + per_record))
    return index


def test_an_empty_index_knows_nothing() -> None:
    index = DuplicateIndex(3)
    assert index.unseen([1, 2])
    assert index.get(1) is None
    assert index.start_offset is None
    assert index.oldest_command_id is None
    assert len(index) == 0


def test_a_known_key_has_its_command_id_and_its_record() -> None:
    index = filled(10, 3, per_record=2)
    assert index.get(3) == 3
    assert not index.unseen([9, 3])
    assert index.unseen([7, 8])
    records = [CoveredRecord(0, 100, 1), CoveredRecord(100, 200, 3), CoveredRecord(200, 300, 5)]
    for command_id in range(1, 7):
        assert index.record_of(command_id) == records[(command_id - 1) // 2]


@pytest.mark.parametrize(("window", "per_record", "kept"), [(5, 1, 5), (5, 2, 6), (1, 3, 3)])
def test_whole_records_are_evicted_once_the_window_is_covered_without_them(
    window: int, per_record: int, kept: int
) -> None:
    records = 10
    index = filled(window, records, per_record)
    assert len(index) == kept
    newest = records * per_record
    assert index.oldest_command_id == newest - kept + 1
    assert index.start_offset == 100 * (records - kept // per_record)
    assert index.get(newest - kept) is None
    assert index.get(newest - kept + 1) is not None


def test_a_record_larger_than_the_window_is_covered_whole() -> None:
    index = filled(2, 1, per_record=50)
    assert len(index) == 50
    assert index.oldest_command_id == 1


def test_ends_are_right_after_the_lists_were_trimmed() -> None:
    index = filled(3, 5_000)
    assert [index.record_of(command_id).end for command_id in (4_998, 4_999, 5_000)] == [
        499_800, 499_900, 500_000,
    ]  # fmt: skip
    assert index.start_offset == 499_700


def test_gaps_between_command_ids_do_not_matter() -> None:
    index = DuplicateIndex(10)
    add(index, 0, 1, [11, 12])
    add(index, 1, 50, [13])
    assert index.record_of(2) == CoveredRecord(0, 100, 1)
    assert index.record_of(50) == CoveredRecord(100, 200, 50)
    assert index.get(13) == 50


def test_a_key_that_was_journaled_again_beyond_the_window_keeps_its_newer_entry() -> None:
    """Reading the log at start covers more than the window, so both entries are seen."""
    index = DuplicateIndex(4)
    add(index, 0, 1, [7, 8])
    add(index, 1, 3, [7])
    for number in range(2, 6):
        add(index, number, number + 2, [20 + number])
        newer = index.get(7)
        assert newer in (None, 3)
        if (index.oldest_command_id or 0) <= 3:
            assert newer == 3
    assert index.get(7) is None


@given(
    window=st.integers(1, 12),
    batches=st.lists(
        st.lists(st.integers(0, 30), min_size=1, max_size=5, unique=True), max_size=40
    ),
)
def test_any_history_is_covered_for_at_least_the_window(
    window: int, batches: list[list[int]]
) -> None:
    """Against a plain list of all that was ever added, as the writer and the start-up add it."""
    index = DuplicateIndex(window)
    history: list[tuple[int, int]] = []
    starts: list[int] = []
    for number, keys in enumerate(batches):
        first = len(history) + 1
        add(index, number, first, keys)
        history += [(key, first + at) for at, key in enumerate(keys)]
        starts += [100 * number] * len(keys)
        newest = dict(history[-window:])
        assert {key: index.get(key) for key in newest} == newest
        assert index.start_offset is not None
        assert index.start_offset <= starts[-window:][0]
        assert index.oldest_command_id is not None
        assert index.oldest_command_id <= history[-window:][0][1]
        for key, command_id in history:
            known = index.get(key)
            assert known is None or known >= command_id
            if known == command_id:
                assert index.record_of(command_id).end == starts[command_id - 1] + 100


@settings(max_examples=25)
@given(
    window=st.integers(1, 3_000),
    batches=st.lists(st.sampled_from([1, 2, 5, 700, 1_500]), min_size=1, max_size=8),
    split=st.integers(1, 4),
    again=st.booleans(),
)
def test_after_a_restart_the_index_covers_the_window_as_before(
    window: int, batches: list[int], split: int, again: bool
) -> None:
    with TemporaryDirectory() as directory:
        config = make_settings(Path(directory), dedup_window=window)
        pool = [make_entry(request_uuid=UUID(int=number)) for number in range(max(batches))]
        records: list[Sequence[Entry]] = [
            pool[:count] if again and window < count else fresh(number, count)
            for number, count in enumerate(batches)
        ]
        segments = [records[at : at + split] for at in range(0, len(records), split)]
        wal = write_wal(config, segments)
        live = DuplicateIndex(window)
        command_id = 1
        for record in wal.records:
            keys = [entry.request_uuid.int for entry in record.entries]
            live.add(record.offset, record.end, command_id, keys)
            command_id += len(keys)
        opened = open_wal(config)
        opened.log.close()
        content = [(record, entry) for record in wal.records for entry in record.entries]
        newest = content[-window:]
        assert opened.index.start_offset is not None
        assert opened.index.start_offset <= newest[0][0].offset
        for _, entry in newest:
            key = entry.request_uuid.int
            assert opened.index.get(key) == live.get(key) is not None
            known = live.get(key)
            assert known is not None
            assert opened.index.record_of(known) == live.record_of(known)


def fresh(number: int, count: int) -> list[Entry]:
    first = (number + 1) * 10_000
    return [make_entry(request_uuid=UUID(int=first + at)) for at in range(count)]
