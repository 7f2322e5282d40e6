"""The rules of an entry that its types can't express (protocol, section 3).

`check_entry` runs for every entry on the hot path, so each test is ordered from cheap to dear and
the parts that most entries lack cost one truth test each.
"""

from collections.abc import Collection, Iterator
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from re import compile as compile_pattern
from typing import Any, Final

from app.model.entry import (
    MAX_INT64,
    MAX_TEXT_BYTES,
    TYPE_NAME_PATTERN,
    ZERO_DIGEST,
    BalanceUpdate,
    CashWithdrawal,
    Entry,
    Event,
    FillSideEffect,
    OutboxAppend,
)

MAX_SIGNIFICANT_DIGITS: Final = 28
MAX_SYMBOLS_DEPTH: Final = 32
_PLAIN_DEPTH: Final = 3
_MAX_PLAIN_NAMES: Final = 4096
_MAX_LEARNT_AT_ONCE: Final = 256
_plain_names: Final[set[str]] = set()
_TYPE_NAME: Final = compile_pattern(TYPE_NAME_PATTERN)


class RuleBroken(ValueError):
    """One rule is broken: `path` within the entry, and a message that names value and limit."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


def check_entry(entry: Entry, max_field_bytes: int) -> None:
    """Check `entry` against every rule its types leave open.

    Raises `RuleBroken` at the first rule that is broken.
    """
    if entry.command_type is not None and not is_type_name(entry.command_type):
        _check_type_name("command_type", entry.command_type)
    if entry.pre_digest is not ZERO_DIGEST and entry.pre_digest.symbols:
        _check_symbols("pre_digest.symbols", entry.pre_digest.symbols)
    if entry.post_digest is not ZERO_DIGEST and entry.post_digest.symbols:
        _check_symbols("post_digest.symbols", entry.post_digest.symbols)
    if len(entry.command_data) > max_field_bytes:
        _check_bytes("command_data", entry.command_data, max_field_bytes)
    if entry.response_data is not None:
        _check_bytes("response_data", entry.response_data, max_field_bytes)
    if entry.rsm_state_digest is not None:
        _check_bytes("rsm_state_digest", entry.rsm_state_digest, max_field_bytes)
    for index, event in enumerate(entry.events):
        if not _is_plain_event(event, max_field_bytes):
            _check_event(f"events[{index}]", event, max_field_bytes)
    if entry.outbox_appends or entry.fill_side_effects or entry.balance_updates:
        _check_side_effects(entry, max_field_bytes)
    if entry.cash_withdrawal_side_effect is not None:
        _check_withdrawal("cash_withdrawal_side_effect", entry.cash_withdrawal_side_effect)


def significant_digits(text: str) -> int:
    """How many digits a decimal in plain notation holds, leading zeros not counted."""
    return len(Decimal(text).as_tuple().digits)


@lru_cache(maxsize=1024)
def is_type_name(text: str) -> bool:
    """Whether `text` may be a type's name. Names are few and come again and again."""
    return _TYPE_NAME.match(text) is not None


def _check_type_name(path: str, text: str) -> None:
    if not is_type_name(text):
        raise RuleBroken(path, f"{text!r} does not match the regex {TYPE_NAME_PATTERN!r}")


def _is_plain_event(event: Event, max_field_bytes: int) -> bool:
    """Whether an event is surely allowed: the common case, in one expression."""
    topic, key = event.event_topic, event.event_key
    return (
        len(event.event_data) <= max_field_bytes
        and topic.isascii()
        and "\0" not in topic
        and (key is None or (key.isascii() and "\0" not in key))
        and is_type_name(event.event_type)
    )


def _check_event(path: str, event: Event, max_field_bytes: int) -> None:
    _check_text(f"{path}.event_topic", event.event_topic)
    if event.event_key is not None:
        _check_text(f"{path}.event_key", event.event_key)
    _check_bytes(f"{path}.event_data", event.event_data, max_field_bytes)
    _check_type_name(f"{path}.event_type", event.event_type)


def _check_side_effects(entry: Entry, max_field_bytes: int) -> None:
    for index, append in enumerate(entry.outbox_appends):
        _check_outbox(f"outbox_appends[{index}]", append, max_field_bytes)
    for index, effect in enumerate(entry.fill_side_effects):
        _check_fill(f"fill_side_effects[{index}]", effect, len(entry.events))
    for index, update in enumerate(entry.balance_updates):
        _check_balance(f"balance_updates[{index}]", update)


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


def _check_symbols(path: str, symbols: dict[str, Any]) -> None:
    if not _is_plain_map(symbols, _PLAIN_DEPTH):
        for at, value in _walk(path, symbols, MAX_SYMBOLS_DEPTH):
            _check_symbol_value(at, value)


def _is_plain_map(symbols: dict[Any, Any], depth: int) -> bool:
    """Whether everything below is surely allowed: plain text and integers, in few levels of maps.

    `_walk` knows every case and where it lies, and takes several times as long.
    """
    if not (_plain_names.issuperset(symbols) or _are_plain_names(symbols)):
        return False
    for value in symbols.values():
        kind = type(value)
        if kind is int:
            if not -MAX_INT64 - 1 <= value <= MAX_INT64:
                return False
        elif kind is dict:
            if depth == 0 or not _is_plain_map(value, depth - 1):
                return False
        elif kind is not str or not _is_plain_text(value):
            return False
    return True


def _are_plain_names(names: Collection[Any]) -> bool:
    """Whether all are plain text; remembers them, since symbols have the same ones again and again.

    What is remembered is bounded, and forgotten as a whole when it would be too much.
    """
    if not all(type(name) is str and _is_plain_text(name) for name in names):
        return False
    if len(names) <= _MAX_LEARNT_AT_ONCE:
        if len(_plain_names) > _MAX_PLAIN_NAMES:
            _plain_names.clear()
        _plain_names.update(names)
    return True


def _is_plain_text(text: str) -> bool:
    return text.isascii() and len(text) <= MAX_TEXT_BYTES and "\0" not in text


def _walk(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """Every key and leaf below `value`, each with its path."""
    if depth == 0:
        raise RuleBroken(path, f"nested more than {MAX_SYMBOLS_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                shown = "of bytes or a list" if isinstance(key, bytes | tuple) else repr(key)
                raise RuleBroken(path, f"key {shown} is not text")
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
    _check_type_name(f"{path}.reason", update.reason)
    _check_decimal(f"{path}.delta", update.delta)
    _check_decimal(f"{path}.balance_after", update.balance_after)
