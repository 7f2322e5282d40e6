"""The rules of an entry that its types can't express (protocol, section 3).

`check_entry` runs for every entry on the hot path, so each test is ordered from cheap to dear and
the parts that most entries lack cost one truth test each.
"""

from collections.abc import Iterator
from decimal import Decimal
from math import isfinite
from typing import Any, Final

from app.model.entry import (
    MAX_INT64,
    MAX_TEXT_BYTES,
    ZERO_DIGEST,
    BalanceUpdate,
    CashWithdrawal,
    Digest,
    Entry,
    Event,
    FillSideEffect,
    OutboxAppend,
)

MAX_SIGNIFICANT_DIGITS: Final = 28
MAX_SYMBOLS_DEPTH: Final = 32


class RuleBroken(ValueError):
    """One rule is broken: `path` within the entry, and a message that names value and limit."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def check_entry(entry: Entry, max_field_bytes: int) -> None:
    """Check `entry` against every rule its types leave open.

    Normalise digests that equal the default.

    Raises `RuleBroken` at the first rule that is broken.
    """
    if entry.pre_digest is not ZERO_DIGEST:
        entry.pre_digest = _checked_digest("pre_digest", entry.pre_digest)
    if entry.post_digest is not ZERO_DIGEST:
        entry.post_digest = _checked_digest("post_digest", entry.post_digest)
    _check_bytes("command_data", entry.command_data, max_field_bytes)
    if entry.response_data is not None:
        _check_bytes("response_data", entry.response_data, max_field_bytes)
    if entry.rsm_state_digest is not None:
        _check_bytes("rsm_state_digest", entry.rsm_state_digest, max_field_bytes)
    _check_events(entry.events, max_field_bytes)
    if entry.outbox_appends or entry.fill_side_effects or entry.balance_updates:
        _check_side_effects(entry, max_field_bytes)
    if entry.cash_withdrawal_side_effect is not None:
        _check_withdrawal("cash_withdrawal_side_effect", entry.cash_withdrawal_side_effect)


def significant_digits(text: str) -> int:
    """How many digits a decimal in plain notation holds, leading zeros not counted."""
    return len(Decimal(text).as_tuple().digits)


def _check_events(events: list[Event], max_field_bytes: int) -> None:
    for index, event in enumerate(events):
        if len(event.event_data) > max_field_bytes:
            _check_bytes(f"events[{index}].event_data", event.event_data, max_field_bytes)
        if not _is_plain(event.event_topic):
            _check_text(f"events[{index}].event_topic", event.event_topic)
        if event.event_key is not None and not _is_plain(event.event_key):
            _check_text(f"events[{index}].event_key", event.event_key)


def _check_side_effects(entry: Entry, max_field_bytes: int) -> None:
    for index, append in enumerate(entry.outbox_appends):
        _check_outbox(f"outbox_appends[{index}]", append, max_field_bytes)
    for index, effect in enumerate(entry.fill_side_effects):
        _check_fill(f"fill_side_effects[{index}]", effect, len(entry.events))
    for index, update in enumerate(entry.balance_updates):
        _check_balance(f"balance_updates[{index}]", update)


def _is_plain(text: str) -> bool:
    """Whether `text` is surely allowed: ASCII without NUL (its type bounds the length)."""
    return text.isascii() and "\0" not in text


def _check_text(path: str, text: str) -> None:
    if "\0" in text:
        raise RuleBroken(path, "text holds a NUL character, which is not allowed")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RuleBroken(path, "text is not valid UTF-8 (it holds a lone surrogate)") from None
    if size > MAX_TEXT_BYTES:
        raise RuleBroken(path, f"text of {size} bytes; at most {MAX_TEXT_BYTES} are allowed")


def _check_bytes(path: str, value: bytes, max_field_bytes: int) -> None:
    if len(value) > max_field_bytes:
        raise RuleBroken(path, f"{len(value)} bytes; at most {max_field_bytes} are allowed")


def _check_decimal(path: str, text: str) -> None:
    digits = significant_digits(text)
    if digits > MAX_SIGNIFICANT_DIGITS:
        raise RuleBroken(
            path,
            f"{text!r} has {digits} significant digits; "
            f"at most {MAX_SIGNIFICANT_DIGITS} are allowed",
        )


def _checked_digest(path: str, digest: Digest) -> Digest:
    if digest.symbols:
        for at, value in _walk(f"{path}.symbols", digest.symbols, MAX_SYMBOLS_DEPTH):
            _check_symbol_value(at, value)
    return ZERO_DIGEST if digest == ZERO_DIGEST else digest


def _walk(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every key and leaf below `value`, each with its path."""
    if depth == 0:
        raise RuleBroken(path, f"nested more than {MAX_SYMBOLS_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise RuleBroken(path, f"key {key!r:.40} is not text")
            yield path, key
            yield from _walk(f"{path}[{key!r:.80}]", item, depth - 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(f"{path}[{index}]", item, depth - 1)
    else:
        yield path, value


def _check_symbol_value(path: str, value: Any) -> None:
    if isinstance(value, str):
        _check_text(path, value)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not -MAX_INT64 - 1 <= value <= MAX_INT64:
            raise RuleBroken(path, f"{value} does not fit a signed 64-bit integer")
    elif isinstance(value, float):
        if not isfinite(value):
            raise RuleBroken(path, f"{value} is not finite")
    else:
        raise RuleBroken(
            path, f"a {type(value).__name__} is not a null, boolean, number, text, list or map"
        )


def _check_outbox(path: str, append: OutboxAppend, max_field_bytes: int) -> None:
    _check_text(f"{path}.directive_id", append.directive_id)
    _check_text(f"{path}.action_key", append.action_key)
    _check_text(f"{path}.idempotency_key", append.idempotency_key)
    _check_bytes(f"{path}.payload", append.payload, max_field_bytes)


def _check_fill(path: str, effect: FillSideEffect, events: int) -> None:
    if effect.event_idx >= events:
        raise RuleBroken(
            f"{path}.event_idx", f"{effect.event_idx} points past the entry's {events} events"
        )
    _check_decimal(f"{path}.taker_ledger_delta", effect.taker_ledger_delta)
    _check_decimal(f"{path}.maker_ledger_delta", effect.maker_ledger_delta)
    _check_decimal(f"{path}.taker_premium_delta", effect.taker_premium_delta)
    _check_decimal(f"{path}.maker_premium_delta", effect.maker_premium_delta)
    if effect.underlying_notional is not None:
        _check_decimal(f"{path}.underlying_notional", effect.underlying_notional)


def _check_withdrawal(path: str, withdrawal: CashWithdrawal) -> None:
    _check_text(f"{path}.request_id", withdrawal.request_id)
    _check_decimal(f"{path}.amount", withdrawal.amount)
    _check_decimal(f"{path}.balance_after", withdrawal.balance_after)


def _check_balance(path: str, update: BalanceUpdate) -> None:
    if update.reference_id is not None:
        _check_text(f"{path}.reference_id", update.reference_id)
    _check_decimal(f"{path}.delta", update.delta)
    _check_decimal(f"{path}.balance_after", update.balance_after)
