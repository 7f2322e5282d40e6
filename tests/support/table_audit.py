"""What Postgres must hold for given entries: every row, every column, and nothing else.

Written from the protocol's sections 3 and 6, without the code that fills the tables.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgpack

from app.model.entry import Digest, Entry
from tests.support.database import query

Row = tuple[Any, ...]

# Columns behind `environment`, the key first.
_COLUMNS: Final[dict[str, str]] = {
    "engine_commands": (
        "command_id, request_uuid, received_ts_ms, command_type, command_data, response_data, "
        "order_id, duration_ms, command_identity_hash, rsm_state_digest"
    ),
    "engine_events": (
        "command_id, event_idx, event_topic, event_key, event_data, l2_sequence, event_type"
    ),
    "engine_command_digests": "command_id, pre_digest, post_digest",
    "directive_outbox": (
        "command_id, append_idx, directive_id, action_key, wallet, account, signer, nonce, "
        "idempotency_key, payload, created_at_ms, expires_at_ms, status"
    ),
    "fill_side_effects": (
        "command_id, effect_idx, event_idx, trade_id, taker_ledger_delta, maker_ledger_delta, "
        "taker_premium_delta, maker_premium_delta, underlying_notional"
    ),
    "cash_withdrawals": "command_id, wallet, request_id, amount, balance_after, timestamp_ms",
    "balance_updates": (
        "command_id, update_idx, balance_update_seq, wallet, delta, balance_after, reason, "
        "reference_id, source_command_id, timestamp_ms"
    ),
    "account_balances": "wallet, balance_after, command_id, timestamp_ms",
    "dead_letters": "command_id, request_uuid",
}


def assert_tables_hold(
    database_url: str,
    entries: Mapping[int, Entry],
    environment: str = "development",
    dead: Collection[UUID] = (),
) -> None:
    """The rows of `environment` are those of `entries`, by `command_id`: all, alone, unchanged.

    Those with a `request_uuid` of `dead` are dead letters, and in no other table.
    """
    alive = {key: entry for key, entry in entries.items() if entry.request_uuid not in dead}
    wanted = _wanted_rows(dict(sorted(alive.items())))
    letters = [(key, entries[key].request_uuid) for key in sorted(entries.keys() - alive.keys())]
    wanted["dead_letters"] = letters
    for table, columns in _COLUMNS.items():
        found = table_rows(database_url, table, environment)
        if table == "engine_command_digests":
            found = [(key, _digest(pre), _digest(post)) for key, pre, post in found]
        _assert_same(table, columns, found, wanted[table])


def table_rows(database_url: str, table: str, environment: str = "development") -> list[Row]:
    """The rows of a table in the order of its key, `environment` left out."""
    statement = f"SELECT {_COLUMNS[table]} FROM {table} WHERE environment = $1 ORDER BY 1, 2"
    return query(database_url, statement, environment)


def progress_of(database_url: str, environment: str = "development") -> Row | None:
    """`wal_id`, `wal_offset`, `last_command_id` and `last_l2_seq` of the progress row."""
    statement = (
        "SELECT wal_id, wal_offset, last_command_id, last_l2_seq FROM replication_progress "
        "WHERE environment = $1"
    )
    return next(iter(query(database_url, statement, environment)), None)


def assert_progress_is_of_one_transaction_with_its_rows(
    database_url: str, environment: str = "development"
) -> None:
    """The transaction that wrote the newest command also wrote the progress row behind it."""
    [[progress, newest]] = query(
        database_url,
        "SELECT xmin::text, (SELECT xmin::text FROM engine_commands WHERE environment = $1 "
        "ORDER BY command_id DESC LIMIT 1) FROM replication_progress WHERE environment = $1",
        environment,
    )
    assert progress == newest


def _assert_same(table: str, columns: str, found: list[Row], wanted: list[Row]) -> None:
    # Compared by hand: pytest's own diff of a hundred thousand rows takes minutes.
    for at, (left, right) in enumerate(zip(found, wanted, strict=False)):
        if _exact(left) != _exact(right):
            raise AssertionError(
                f"{table}, row {at} ({columns}):\n  found    {left}\n  expected {right}"
            )
    if len(found) != len(wanted):
        extra = (found if len(found) > len(wanted) else wanted)[min(len(found), len(wanted))]
        raise AssertionError(
            f"{table}: {len(found)} rows, {len(wanted)} expected; the first one beyond: {extra}"
        )


def _exact(row: Row) -> Row:
    """Decimals compare with their scale: 1.250 is not 1.25. The sign of zero is not kept."""
    return tuple(_scaled(value) if isinstance(value, Decimal) else value for value in row)


def _scaled(value: Decimal) -> tuple[Decimal, int]:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), f"{value} is not finite"
    # Postgres has no scale below 0: 1E+5 is 100000 there.
    return value, min(exponent, 0)


def _wanted_rows(entries: Mapping[int, Entry]) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {table: [] for table in _COLUMNS}
    for command_id, entry in entries.items():
        rows["engine_commands"].append(
            (
                command_id,
                entry.request_uuid,
                entry.received_ts_ms,
                entry.command_type,
                entry.command_data,
                entry.response_data,
                entry.order_id,
                entry.duration_ms,
                entry.command_identity_hash,
                entry.rsm_state_digest,
            )
        )
        rows["engine_command_digests"].append(
            (command_id, _fields(entry.pre_digest), _fields(entry.post_digest))
        )
        for table, wanted in _PARTS.items():
            rows[table] += [(command_id, *row) for row in wanted(command_id, entry)]
    rows["account_balances"] = _balances(entries)
    return rows


def _event_rows(_: int, entry: Entry) -> Iterable[Row]:
    for index, event in enumerate(entry.events):
        yield (
            index,
            event.event_topic,
            event.event_key,
            event.event_data,
            event.l2_sequence,
            event.event_type,
        )


def _outbox_rows(_: int, entry: Entry) -> Iterable[Row]:
    for index, append in enumerate(entry.outbox_appends):
        yield (
            index,
            append.directive_id,
            append.action_key,
            bytes(append.wallet),
            bytes(append.account),
            bytes(append.signer),
            append.nonce,
            append.idempotency_key,
            append.payload,
            append.created_at_ms,
            append.expires_at_ms,
            "needs_rsm_signature",
        )


def _fill_rows(_: int, entry: Entry) -> Iterable[Row]:
    for index, fill in enumerate(entry.fill_side_effects):
        notional = fill.underlying_notional
        yield (
            index,
            fill.event_idx,
            fill.trade_id,
            Decimal(fill.taker_ledger_delta),
            Decimal(fill.maker_ledger_delta),
            Decimal(fill.taker_premium_delta),
            Decimal(fill.maker_premium_delta),
            None if notional is None else Decimal(notional),
        )


def _withdrawal_rows(_: int, entry: Entry) -> Iterable[Row]:
    withdrawal = entry.cash_withdrawal_side_effect
    if withdrawal is not None:
        yield (
            bytes(withdrawal.wallet),
            withdrawal.request_id,
            Decimal(withdrawal.amount),
            Decimal(withdrawal.balance_after),
            withdrawal.timestamp_ms,
        )


def _update_rows(command_id: int, entry: Entry) -> Iterable[Row]:
    for index, update in enumerate(entry.balance_updates):
        source = update.source_command_id
        yield (
            index,
            update.balance_update_seq,
            bytes(update.wallet),
            Decimal(update.delta),
            Decimal(update.balance_after),
            update.reason,
            update.reference_id,
            command_id if source is None else source,
            update.timestamp_ms,
        )


_PARTS: Final[dict[str, Callable[[int, Entry], Iterable[Row]]]] = {
    "engine_events": _event_rows,
    "directive_outbox": _outbox_rows,
    "fill_side_effects": _fill_rows,
    "cash_withdrawals": _withdrawal_rows,
    "balance_updates": _update_rows,
}


def _balances(entries: Mapping[int, Entry]) -> list[Row]:
    """Per wallet what the newest entry says: its highest update, else its withdrawal."""
    held: dict[bytes, Row] = {}
    for command_id, entry in entries.items():
        said: dict[bytes, Row] = {}
        withdrawal = entry.cash_withdrawal_side_effect
        if withdrawal is not None:
            amount = Decimal(withdrawal.balance_after)
            said[bytes(withdrawal.wallet)] = (amount, command_id, withdrawal.timestamp_ms)
        highest: dict[bytes, int] = {}
        for update in entry.balance_updates:
            wallet = bytes(update.wallet)
            if update.balance_update_seq >= highest.get(wallet, 0):
                highest[wallet] = update.balance_update_seq
                said[wallet] = (Decimal(update.balance_after), command_id, update.timestamp_ms)
        held |= said
    return [(wallet, *held[wallet]) for wallet in sorted(held)]


def _fields(digest: Digest) -> dict[str, Any]:
    return {
        "next_order_id": digest.next_order_id,
        "next_trade_id": digest.next_trade_id,
        "l2_seq": digest.l2_seq,
        "symbols": digest.symbols,
    }


def _digest(stored: bytes) -> Any:
    assert stored[:1] == b"\x01", "a digest begins with its version"
    return msgpack.unpackb(stored[1:], strict_map_key=False)
