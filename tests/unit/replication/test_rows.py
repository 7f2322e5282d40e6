"""Rows and progress as computed, before any of it meets Postgres."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from app.errors import InvariantError, ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import MAX_INT64, Digest, Entry
from app.replication.rows import (
    COMMAND_COLUMNS,
    Balance,
    Progress,
    advance,
    child_rows,
    command_rows,
    encode_digest,
    newest_balances,
    numbered,
    whole_entry,
)
from app.replication.schema import metadata
from app.wal.record import decode_command
from tests.support.journal_entries import (
    make_batch,
    make_entry,
    make_event,
    make_full_entry,
    make_update,
    make_withdrawal,
    wallet,
)
from tests.support.nesting import below_calls, nested_entry

# Columns that Postgres fills in by itself, or that another field of the row stands for.
DEFAULTED = {"directive_outbox": {"status"}}
START = Progress(wal_id="w", wal_offset=100, last_command_id=10, last_l2_seq=5, dead_letters=2)


def test_the_columns_of_every_copied_row_are_those_of_its_table() -> None:
    entries = [(1, make_full_entry())]
    copied = child_rows("e", entries, persist_digests=True)
    assert len(copied) == 6
    for name, columns, rows in copied:
        declared = {column.name for column in metadata.tables[name].columns}
        assert set(columns) == declared - DEFAULTED.get(name, set())
        assert {len(row) for row in rows} == {len(columns)}
    assert {len(row) for row in command_rows("e", entries)} == {len(COMMAND_COLUMNS)}


def test_every_field_of_an_entry_has_a_column_or_a_table() -> None:
    columns = {column.name for table in metadata.tables.values() for column in table.columns}
    tables = {
        "events": "engine_events",
        "outbox_appends": "directive_outbox",
        "fill_side_effects": "fill_side_effects",
        "cash_withdrawal_side_effect": "cash_withdrawals",
        "balance_updates": "balance_updates",
    }
    for field in Entry.__struct_fields__:
        assert field in columns or tables[field] in metadata.tables
    entry = make_full_entry()
    for field, name in tables.items():
        value = getattr(entry, field)
        part = value[0] if isinstance(value, list) else value
        assert set(part.__struct_fields__) <= {c.name for c in metadata.tables[name].columns}


def test_tables_without_rows_are_left_out() -> None:
    assert child_rows("e", [(1, make_entry())], persist_digests=False) == []


def test_command_ids_count_from_the_first_of_each_batch() -> None:
    a, b, c = make_entry(), make_entry(), make_entry()
    assert numbered([make_batch(5, a, b), make_batch(9), make_batch(9, c)]) == [
        (5, a),
        (6, b),
        (9, c),
    ]


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([], 5),
        ([None], 5),
        ([4], 5),
        ([7, 6], 7),
        ([MAX_INT64], MAX_INT64),
        ([MAX_INT64 + 1], 5),
    ],
)
def test_the_highest_l2_sequence_so_far(sequences: list[Any], expected: int) -> None:
    entry = make_entry(events=[make_event(l2_sequence=sequence) for sequence in sequences])
    after = advance(START, [(11, entry)], 110)
    assert after == msgspec.structs.replace(
        START, wal_offset=110, last_command_id=11, last_l2_seq=expected
    )


def test_a_negative_l2_sequence_is_the_highest_where_there_was_none() -> None:
    entry = make_entry(events=[make_event(l2_sequence=-3)])
    assert advance(Progress(wal_id="w"), [(1, entry)], 10).last_l2_seq == -3


@pytest.mark.parametrize("ids", [[10], [9], [11, 11], [12, 11]])
def test_command_ids_must_go_up(ids: list[int]) -> None:
    with pytest.raises(ReplicationRefused):
        advance(START, [(command_id, make_entry()) for command_id in ids], 110)


def test_offsets_never_go_back() -> None:
    assert advance(START, [], 100) == START
    with pytest.raises(InvariantError):
        advance(START, [], 99)


def test_the_later_of_two_updates_with_one_sequence_counts() -> None:
    entry = make_entry(balance_updates=[make_update(3, 1, "30"), make_update(3, 1, "31")])
    assert newest_balances([(1, entry)]) == {wallet(1): Balance(Decimal(31), 1, 5)}


def test_a_later_withdrawal_overrides_an_earlier_entrys_update() -> None:
    entries = [
        (1, make_entry(balance_updates=[make_update(9, 1, "30")])),
        (2, make_entry(cash_withdrawal_side_effect=make_withdrawal(1, "20"))),
    ]
    assert newest_balances(entries) == {wallet(1): Balance(Decimal(20), 2, 6)}


def test_a_digest_is_a_version_and_all_four_fields() -> None:
    encoded = encode_digest(Digest(l2_seq=3, symbols={"BTC": {"best": "1.5"}}))
    assert encoded[0] == 1
    assert msgspec.msgpack.decode(encoded[1:]) == {
        "next_order_id": 0,
        "next_trade_id": 0,
        "l2_seq": 3,
        "symbols": {"BTC": {"best": "1.5"}},
    }


def test_an_entry_without_an_encoding_is_still_kept_in_some_form() -> None:
    entry = make_entry(events=[make_event("\udc80")])
    assert "\\udc80" in msgspec.msgpack.decode(whole_entry(entry))
    assert whole_entry(make_full_entry()) != b""
    fine = make_full_entry()
    assert whole_entry(fine) == canonical_bytes(fine)


def test_an_entry_that_is_nested_as_deeply_as_it_can_be_read_is_kept_whole() -> None:
    entry = decode_command(Raw(nested_entry(900)))
    assert below_calls(90, lambda: whole_entry(entry)) == canonical_bytes(entry)
    entry.events = [make_event("\udc80")]
    assert b"\\udc80" in below_calls(90, lambda: whole_entry(entry))


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "sNaN", "1e2000", "1e-2000", "1" * 101, "x", ""]
)
def test_decimals_that_would_not_come_back_as_they_went_are_refused(text: str) -> None:
    entry = make_entry(balance_updates=[make_update(0, 1, text)])
    with pytest.raises((ValueError, ArithmeticError)):
        newest_balances([(1, entry)])


def test_the_longest_legal_decimal_is_taken() -> None:
    text = "-" + "9" * 28 + "." + "9" * 28
    entry = make_entry(balance_updates=[make_update(0, 1, text)])
    assert newest_balances([(1, entry)])[wallet(1)].balance_after == Decimal(text)
