"""Entries and WAL batches of them. No rule is checked: a test may break any."""

from typing import Any
from uuid import uuid4

from app.model.entry import (
    Address,
    BalanceUpdate,
    CashWithdrawal,
    Digest,
    Entry,
    Event,
    FillSideEffect,
    Hash32,
    OutboxAppend,
)
from app.wal.record import Batch


def wallet(number: int) -> Address:
    return Address(number.to_bytes(20, "big"))


def make_entry(**fields: Any) -> Entry:
    """The smallest entry, save for `fields`."""
    return Entry(
        **{
            "request_uuid": uuid4(),
            "received_ts_ms": 1_700_000_000_000,
            "command_data": b"\x01\x80",
            **fields,
        }
    )


def make_event(topic: str = "fills", **fields: Any) -> Event:
    return Event(
        **{"event_topic": topic, "event_data": b"\x01\x90", "event_type": "Filled", **fields}
    )


def make_update(sequence: int, holder: int, balance: str, **fields: Any) -> BalanceUpdate:
    return BalanceUpdate(
        **{
            "balance_update_seq": sequence,
            "wallet": wallet(holder),
            "delta": "-1.25",
            "balance_after": balance,
            "reason": "Fee",
            "timestamp_ms": 5,
            **fields,
        }
    )


def make_withdrawal(holder: int, balance: str, **fields: Any) -> CashWithdrawal:
    return CashWithdrawal(
        **{
            "wallet": wallet(holder),
            "request_id": "w-1",
            "amount": "10",
            "balance_after": balance,
            "timestamp_ms": 6,
            **fields,
        }
    )


def make_full_entry(**fields: Any) -> Entry:
    """An entry that has everything an entry can have."""
    return make_entry(
        **{
            "command_type": "TickSnapshot",
            "response_data": b"",
            "order_id": -7,
            "pre_digest": Digest(
                next_order_id=1, next_trade_id=2, l2_seq=3, symbols={"BTC": [1, "x"]}
            ),
            "post_digest": Digest(next_order_id=2, l2_seq=4),
            "duration_ms": 12,
            "events": [
                make_event("fills", event_key="k", l2_sequence=41),
                make_event("books", event_data=b""),
            ],
            "outbox_appends": [
                OutboxAppend(
                    directive_id=f"d{number}",
                    action_key="a",
                    wallet=wallet(1),
                    account=wallet(2),
                    signer=wallet(3),
                    nonce=number,
                    idempotency_key="same",
                    payload=b"p",
                    created_at_ms=9,
                    expires_at_ms=None if number else 10,
                )
                for number in range(2)
            ],
            "fill_side_effects": [
                FillSideEffect(
                    event_idx=0,
                    trade_id=8,
                    taker_ledger_delta="-1.25",
                    maker_ledger_delta="1.250",
                    taker_premium_delta="0",
                    maker_premium_delta="1234567890123456.123456789012",
                    underlying_notional=notional,
                )
                for notional in (None, "3")
            ],
            "cash_withdrawal_side_effect": make_withdrawal(4, "90.5"),
            "balance_updates": [
                make_update(1, 5, "7"),
                make_update(0, 5, "8", reference_id="r", source_command_id=77),
            ],
            "command_identity_hash": Hash32(b"\x07" * 32),
            "rsm_state_digest": b"state",
            **fields,
        }
    )


def make_batch(first_command_id: int, *entries: Entry) -> Batch:
    return Batch(offset=0, first_command_id=first_command_id, commands=list(entries))
