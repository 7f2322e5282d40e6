"""Entries as rows of the tables in Postgres (protocol, sections 3 and 6).

Pure: values in, values out. An entry's values are taken on trust here: what Postgres or its driver
refuses is told apart later.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from app.errors import InvariantError, ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import MAX_INT64, Digest, Entry
from app.wal.decoding import at_any_depth
from app.wal.record import Batch

DIGEST_VERSION: Final = b"\x01"
# Far beyond what an entry may hold (28 digits either side of the point).
_MAX_DECIMAL_CHARACTERS: Final = 100
_MAX_DECIMAL_EXPONENT: Final = 1000

Row = tuple[Any, ...]
# A command_id and its entry.
Numbered = tuple[int, Entry]

# The fields of `Progress`; $1 is the environment.
READ_PROGRESS: Final = """
SELECT wal_id, wal_offset, last_command_id, last_l2_seq, dead_letters
FROM replication_progress
WHERE environment = $1
"""

_encode_map = msgspec.msgpack.Encoder().encode


class Progress(Struct, frozen=True, kw_only=True):
    """How far the WAL `wal_id` has been replicated: the row of `replication_progress`.

    `wal_offset` is the end of the last record that is in Postgres, `last_command_id` the
    newest one in it, `last_l2_seq` the highest `l2_sequence` of any event so far, `dead_letters`
    their number. The defaults are those of a WAL of which nothing has been replicated.
    """

    wal_id: str
    wal_offset: int = 0
    last_command_id: int = 0
    last_l2_seq: int | None = None
    dead_letters: int = 0


class TableRows(NamedTuple):
    """Rows to copy into one table."""

    table: str
    columns: tuple[str, ...]
    rows: list[Row]


class Balance(NamedTuple):
    """What a wallet holds after a command."""

    balance_after: Decimal
    command_id: int
    timestamp_ms: int


COMMAND_COLUMNS: Final = (
    "environment",
    "command_id",
    "request_uuid",
    "received_ts_ms",
    "command_type",
    "command_data",
    "response_data",
    "order_id",
    "duration_ms",
    "command_identity_hash",
    "rsm_state_digest",
)
_EVENT_COLUMNS: Final = (
    "environment",
    "command_id",
    "event_idx",
    "event_topic",
    "event_key",
    "event_data",
    "l2_sequence",
    "event_type",
)
_DIGEST_COLUMNS: Final = ("environment", "command_id", "pre_digest", "post_digest")
_OUTBOX_COLUMNS: Final = (
    "environment",
    "command_id",
    "append_idx",
    "directive_id",
    "action_key",
    "wallet",
    "account",
    "signer",
    "nonce",
    "idempotency_key",
    "payload",
    "created_at_ms",
    "expires_at_ms",
)
_FILL_COLUMNS: Final = (
    "environment",
    "command_id",
    "effect_idx",
    "event_idx",
    "trade_id",
    "taker_ledger_delta",
    "maker_ledger_delta",
    "taker_premium_delta",
    "maker_premium_delta",
    "underlying_notional",
)
_WITHDRAWAL_COLUMNS: Final = (
    "environment",
    "command_id",
    "wallet",
    "request_id",
    "amount",
    "balance_after",
    "timestamp_ms",
)
_BALANCE_COLUMNS: Final = (
    "environment",
    "command_id",
    "update_idx",
    "balance_update_seq",
    "wallet",
    "delta",
    "balance_after",
    "reason",
    "reference_id",
    "source_command_id",
    "timestamp_ms",
)


def numbered(batches: Sequence[Batch]) -> list[Numbered]:
    """The entries of `batches`, each with its `command_id`."""
    return [pair for batch in batches for pair in enumerate(batch.commands, batch.first_command_id)]


def advance(progress: Progress, entries: Sequence[Numbered], end_offset: int) -> Progress:
    """The progress once `entries` and the log up to `end_offset` are in Postgres.

    Raises `ReplicationRefused` when a `command_id` is not newer than all before it.
    """
    if end_offset < progress.wal_offset:
        raise InvariantError(f"progress would go back from {progress.wal_offset} to {end_offset}")
    newest = progress.last_command_id
    highest = progress.last_l2_seq
    for command_id, entry in entries:
        if command_id <= newest:
            raise ReplicationRefused(
                f"the WAL goes on with command_id {command_id}, but Postgres is at {newest}"
            )
        newest = command_id
        for event in entry.events:
            sequence = event.l2_sequence
            # One that no column holds makes its entry a dead letter; it must not take the rest
            # along.
            if (
                sequence is not None
                and (highest is None or sequence > highest)
                and -MAX_INT64 <= sequence <= MAX_INT64
            ):
                highest = sequence
    return Progress(
        wal_id=progress.wal_id,
        wal_offset=end_offset,
        last_command_id=newest,
        last_l2_seq=highest,
        dead_letters=progress.dead_letters,
    )


def command_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    """The rows of `engine_commands`, columns as in `COMMAND_COLUMNS`."""
    return [
        (
            environment,
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
        for command_id, entry in entries
    ]


def child_rows(
    environment: str, entries: Sequence[Numbered], *, persist_digests: bool
) -> list[TableRows]:
    """The rows below `entries`, for each table that gets any."""
    tables = [
        TableRows("engine_events", _EVENT_COLUMNS, _event_rows(environment, entries)),
        TableRows("directive_outbox", _OUTBOX_COLUMNS, _outbox_rows(environment, entries)),
        TableRows("fill_side_effects", _FILL_COLUMNS, _fill_rows(environment, entries)),
        TableRows("cash_withdrawals", _WITHDRAWAL_COLUMNS, _withdrawal_rows(environment, entries)),
        TableRows("balance_updates", _BALANCE_COLUMNS, _balance_rows(environment, entries)),
    ]
    if persist_digests:
        digests = [
            (
                environment,
                command_id,
                encode_digest(entry.pre_digest),
                encode_digest(entry.post_digest),
            )
            for command_id, entry in entries
        ]
        tables.append(TableRows("engine_command_digests", _DIGEST_COLUMNS, digests))
    return [table for table in tables if table.rows]


def newest_balances(entries: Iterable[Numbered]) -> dict[bytes, Balance]:
    """For each wallet that `entries` (oldest first) touch, its balance after the newest of them.

    Within an entry the highest `balance_update_seq` counts, the later of equals; a withdrawal
    counts where its entry has no update for the wallet.
    """
    balances: dict[bytes, Balance] = {}
    for command_id, entry in entries:
        withdrawal = entry.cash_withdrawal_side_effect
        if withdrawal is not None:
            balances[withdrawal.wallet] = Balance(
                _number(withdrawal.balance_after), command_id, withdrawal.timestamp_ms
            )
        for update in sorted(entry.balance_updates, key=lambda part: part.balance_update_seq):
            balances[update.wallet] = Balance(
                _number(update.balance_after), command_id, update.timestamp_ms
            )
    return balances


def encode_digest(digest: Digest) -> bytes:
    """A digest as it is stored: a version byte, then a MessagePack map with all four fields."""
    return DIGEST_VERSION + _encode_map(
        {
            "next_order_id": digest.next_order_id,
            "next_trade_id": digest.next_trade_id,
            "l2_seq": digest.l2_seq,
            "symbols": digest.symbols,
        }
    )


def whole_entry(entry: Entry) -> bytes:
    """The canonical encoding of an entry, or of its ASCII representation where it has none."""
    try:
        return at_any_depth(lambda: canonical_bytes(entry))
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return _encode_map(at_any_depth(lambda: ascii(entry)))


def _event_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    return [
        (
            environment,
            command_id,
            index,
            event.event_topic,
            event.event_key,
            event.event_data,
            event.l2_sequence,
            event.event_type,
        )
        for command_id, entry in entries
        for index, event in enumerate(entry.events)
    ]


def _outbox_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    return [
        (
            environment,
            command_id,
            index,
            append.directive_id,
            append.action_key,
            append.wallet,
            append.account,
            append.signer,
            append.nonce,
            append.idempotency_key,
            append.payload,
            append.created_at_ms,
            append.expires_at_ms,
        )
        for command_id, entry in entries
        for index, append in enumerate(entry.outbox_appends)
    ]


def _fill_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    return [
        (
            environment,
            command_id,
            index,
            effect.event_idx,
            effect.trade_id,
            _number(effect.taker_ledger_delta),
            _number(effect.maker_ledger_delta),
            _number(effect.taker_premium_delta),
            _number(effect.maker_premium_delta),
            None if effect.underlying_notional is None else _number(effect.underlying_notional),
        )
        for command_id, entry in entries
        for index, effect in enumerate(entry.fill_side_effects)
    ]


def _withdrawal_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    return [
        (
            environment,
            command_id,
            withdrawal.wallet,
            withdrawal.request_id,
            _number(withdrawal.amount),
            _number(withdrawal.balance_after),
            withdrawal.timestamp_ms,
        )
        for command_id, entry in entries
        if (withdrawal := entry.cash_withdrawal_side_effect) is not None
    ]


def _balance_rows(environment: str, entries: Iterable[Numbered]) -> list[Row]:
    return [
        (
            environment,
            command_id,
            index,
            update.balance_update_seq,
            update.wallet,
            _number(update.delta),
            _number(update.balance_after),
            update.reason,
            update.reference_id,
            command_id if update.source_command_id is None else update.source_command_id,
            update.timestamp_ms,
        )
        for command_id, entry in entries
        for index, update in enumerate(entry.balance_updates)
    ]


def _number(text: str) -> Decimal:
    """A decimal of a plain size: finite, and nothing that the driver would wrap around silently."""
    number = Decimal(text)
    if not (
        number.is_finite()
        and len(text) <= _MAX_DECIMAL_CHARACTERS
        and abs(number.adjusted()) <= _MAX_DECIMAL_EXPONENT
    ):
        raise ValueError(f"{text[:_MAX_DECIMAL_CHARACTERS]!r} is no finite decimal of a plain size")
    return number
