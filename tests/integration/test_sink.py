"""WAL batches become rows exactly once, whatever they hold."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from app.errors import ReplicationRefused
from app.replication.postgres import Sink
from app.replication.rows import Progress
from tests.support.journal_entries import (
    make_batch,
    make_entry,
    make_event,
    make_full_entry,
    make_update,
    make_withdrawal,
    wallet,
)
from tests.support.replication_sink import ENVIRONMENT, WAL, apply, balances, rows


async def test_every_field_of_an_entry_lands_in_its_table(sink: Sink, observer: Any) -> None:
    entry = make_full_entry()
    await apply(sink, entry)

    assert await rows(observer, "engine_commands") == [
        {
            "command_id": 1,
            "request_uuid": entry.request_uuid,
            "received_ts_ms": 1_700_000_000_000,
            "command_type": "TickSnapshot",
            "command_data": b"\x01\x80",
            "response_data": b"",
            "order_id": -7,
            "duration_ms": 12,
            "command_identity_hash": b"\x07" * 32,
            "rsm_state_digest": b"state",
        }
    ]
    assert await rows(observer, "engine_events") == [
        {
            "command_id": 1,
            "event_idx": 0,
            "event_topic": "fills",
            "event_key": "k",
            "event_data": b"\x01\x90",
            "l2_sequence": 41,
            "event_type": "Filled",
        },
        {
            "command_id": 1,
            "event_idx": 1,
            "event_topic": "books",
            "event_key": None,
            "event_data": b"",
            "l2_sequence": None,
            "event_type": "Filled",
        },
    ]
    assert await rows(observer, "directive_outbox") == [
        {
            "command_id": 1,
            "append_idx": number,
            "directive_id": f"d{number}",
            "action_key": "a",
            "wallet": wallet(1),
            "account": wallet(2),
            "signer": wallet(3),
            "nonce": number,
            "idempotency_key": "same",
            "payload": b"p",
            "created_at_ms": 9,
            "expires_at_ms": expires,
            "status": "needs_rsm_signature",
        }
        for number, expires in ((0, 10), (1, None))
    ]


async def test_side_effects_of_an_entry_land_in_their_tables(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry())

    assert await rows(observer, "fill_side_effects") == [
        {
            "command_id": 1,
            "effect_idx": index,
            "event_idx": 0,
            "trade_id": 8,
            "taker_ledger_delta": Decimal("-1.25"),
            "maker_ledger_delta": Decimal("1.250"),
            "taker_premium_delta": Decimal(0),
            "maker_premium_delta": Decimal("1234567890123456.123456789012"),
            "underlying_notional": notional,
        }
        for index, notional in ((0, None), (1, Decimal(3)))
    ]
    assert await rows(observer, "cash_withdrawals") == [
        {
            "command_id": 1,
            "wallet": wallet(4),
            "request_id": "w-1",
            "amount": Decimal(10),
            "balance_after": Decimal("90.5"),
            "timestamp_ms": 6,
        }
    ]
    shared = {"wallet": wallet(5), "delta": Decimal("-1.25"), "reason": "Fee", "timestamp_ms": 5}
    assert await rows(observer, "balance_updates") == [
        {
            "command_id": 1,
            "update_idx": 0,
            "balance_update_seq": 1,
            "balance_after": Decimal(7),
            "reference_id": None,
            "source_command_id": 1,
            **shared,
        },
        {
            "command_id": 1,
            "update_idx": 1,
            "balance_update_seq": 0,
            "balance_after": Decimal(8),
            "reference_id": "r",
            "source_command_id": 77,
            **shared,
        },
    ]


async def test_digests_are_a_version_byte_and_a_whole_map(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry(), make_entry())
    full, empty = await rows(observer, "engine_command_digests")
    zeros = {"next_order_id": 0, "next_trade_id": 0, "l2_seq": 0, "symbols": {}}
    assert full["pre_digest"][:1] == b"\x01"
    assert msgspec.msgpack.decode(full["pre_digest"][1:]) == {
        "next_order_id": 1,
        "next_trade_id": 2,
        "l2_seq": 3,
        "symbols": {"BTC": [1, "x"]},
    }
    assert msgspec.msgpack.decode(full["post_digest"][1:]) == zeros | {
        "next_order_id": 2,
        "l2_seq": 4,
    }
    assert msgspec.msgpack.decode(empty["pre_digest"][1:]) == zeros


async def test_digests_stay_out_when_they_are_not_wanted(database_url: str, observer: Any) -> None:
    sink = await Sink.connect(database_url, ENVIRONMENT, persist_digests=False)
    await apply(sink, make_full_entry())
    await sink.close()
    assert await rows(observer, "engine_command_digests") == []
    assert len(await rows(observer, "engine_commands")) == 1


async def test_an_entry_with_nothing_but_what_is_required(sink: Sink, observer: Any) -> None:
    entry = make_entry()
    await apply(sink, entry)
    (row,) = await rows(observer, "engine_commands")
    empty = (
        "command_type",
        "response_data",
        "order_id",
        "command_identity_hash",
        "rsm_state_digest",
    )
    assert {row[name] for name in empty} == {None}
    assert row["duration_ms"] == 0


async def test_command_ids_follow_each_batch_and_progress_moves(sink: Sink, observer: Any) -> None:
    batches = [
        make_batch(5, make_entry(events=[make_event(l2_sequence=9)]), make_entry()),
        make_batch(10, make_entry(events=[make_event(l2_sequence=3), make_event()])),
    ]
    after = await sink.apply(batches, 300, Progress(wal_id=WAL))
    assert after == Progress(wal_id=WAL, wal_offset=300, last_command_id=10, last_l2_seq=9)
    assert await sink.read_progress() == after
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [5, 6, 10]
    further = await sink.apply([], 340, after)
    assert further == await sink.read_progress()
    assert (further.wal_offset, further.last_command_id, further.last_l2_seq) == (340, 10, 9)


async def test_progress_is_none_before_the_first_record(sink: Sink) -> None:
    assert await sink.read_progress() is None


async def test_environments_do_not_meet(sink: Sink, database_url: str, observer: Any) -> None:
    entry = make_full_entry()
    await apply(sink, entry)
    other = await Sink.connect(database_url, "another")
    assert await other.read_progress() is None
    await apply(other, entry)
    await other.close()
    assert len(await rows(observer, "engine_commands")) == 2
    assert len(await rows(observer, "account_balances")) == 4


async def test_a_repeated_request_uuid_leaves_the_first_row_and_nothing_of_the_second(
    sink: Sink, observer: Any
) -> None:
    first = make_full_entry(events=[make_event("first", l2_sequence=1)])
    progress = await apply(sink, first)
    repeated = make_full_entry(
        request_uuid=first.request_uuid,
        events=[make_event("second", l2_sequence=2)],
        balance_updates=[make_update(9, 5, "999")],
        cash_withdrawal_side_effect=make_withdrawal(4, "999"),
        duration_ms=999,
    )
    survivor = make_entry(events=[make_event("third")])
    progress = await apply(sink, repeated, survivor, after=progress)

    commands = await rows(observer, "engine_commands")
    assert [(row["command_id"], row["duration_ms"]) for row in commands] == [(1, 12), (3, 0)]
    topics = [row["event_topic"] for row in await rows(observer, "engine_events")]
    assert topics == ["first", "third"]
    for name in ("directive_outbox", "fill_side_effects", "cash_withdrawals", "balance_updates"):
        assert {row["command_id"] for row in await rows(observer, name)} == {1}
    assert len(await rows(observer, "engine_command_digests")) == 2
    assert await balances(observer) == {4: (Decimal("90.5"), 1), 5: (Decimal(7), 1)}
    assert (progress.last_command_id, progress.dead_letters) == (3, 0)


async def test_a_request_uuid_twice_in_one_transaction(sink: Sink, observer: Any) -> None:
    first = make_entry(balance_updates=[make_update(0, 1, "1")])
    second = make_entry(request_uuid=first.request_uuid, balance_updates=[make_update(0, 1, "2")])
    await apply(sink, first, second)
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1]
    assert await balances(observer) == {1: (Decimal(1), 1)}


async def test_balance_of_the_highest_sequence_within_an_entry(sink: Sink, observer: Any) -> None:
    updates = [make_update(7, 1, "70"), make_update(9, 1, "90"), make_update(8, 1, "80")]
    await apply(sink, make_entry(balance_updates=updates))
    assert await balances(observer) == {1: (Decimal(90), 1)}


async def test_balance_of_the_newest_command_in_a_transaction(sink: Sink, observer: Any) -> None:
    older = make_entry(balance_updates=[make_update(99, 1, "1"), make_update(99, 2, "2")])
    newer = make_entry(balance_updates=[make_update(0, 1, "3")])
    await apply(sink, older, newer)
    assert await balances(observer) == {1: (Decimal(3), 2), 2: (Decimal(2), 1)}


async def test_balance_of_a_later_transaction_wins(sink: Sink, observer: Any) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(5, 1, "1")]))
    await apply(sink, make_entry(balance_updates=[make_update(0, 1, "2")]), after=progress)
    assert await balances(observer) == {1: (Decimal(2), 2)}


async def test_an_older_command_never_overwrites_a_balance(sink: Sink, observer: Any) -> None:
    await observer.execute(
        "INSERT INTO account_balances VALUES ($1, $2, 5, 50, 0)", ENVIRONMENT, wallet(1)
    )
    await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    assert await balances(observer) == {1: (Decimal(5), 50)}


async def test_a_withdrawal_counts_where_its_entry_has_no_update_for_the_wallet(
    sink: Sink, observer: Any
) -> None:
    alone = make_entry(cash_withdrawal_side_effect=make_withdrawal(1, "10"))
    with_other = make_entry(
        cash_withdrawal_side_effect=make_withdrawal(2, "20"),
        balance_updates=[make_update(0, 3, "30")],
    )
    with_own = make_entry(
        cash_withdrawal_side_effect=make_withdrawal(4, "40"),
        balance_updates=[make_update(0, 4, "44")],
    )
    await apply(sink, alone, with_other, with_own)
    assert await balances(observer) == {
        1: (Decimal(10), 1),
        2: (Decimal(20), 2),
        3: (Decimal(30), 2),
        4: (Decimal(44), 3),
    }


async def test_adopting_goes_on_behind_the_newest_command(sink: Sink, observer: Any) -> None:
    poison = make_entry(events=[make_event("\0")])
    progress = await apply(sink, make_entry(events=[make_event(l2_sequence=6)]), poison)
    adopted = await sink.adopt("wal-2")
    assert adopted == Progress(
        wal_id="wal-2", wal_offset=0, last_command_id=2, last_l2_seq=6, dead_letters=1
    )
    assert adopted == await sink.read_progress()
    after = await apply(sink, make_entry(), after=adopted)
    assert (after.wal_offset, after.last_command_id) == (10, 3)
    assert await sink.adopt("wal-2") == after
    with pytest.raises(ReplicationRefused, match="of wal-2"):
        await apply(sink, make_entry(), after=progress)


async def test_adopting_without_a_progress_row_looks_at_the_rows(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry(), make_entry(), make_entry(events=[make_event("\0")]))
    await observer.execute("DELETE FROM replication_progress")
    assert await sink.adopt("wal-2") == Progress(
        wal_id="wal-2", wal_offset=0, last_command_id=3, last_l2_seq=41, dead_letters=1
    )


async def test_adopting_an_unused_environment_begins_at_the_beginning(sink: Sink) -> None:
    assert await sink.adopt(WAL) == Progress(wal_id=WAL)
