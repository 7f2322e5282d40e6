"""The rules of an entry that its types can't express: each with its path and its limits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from app.model.entry import Digest, Entry
from app.model.rules import MAX_SYMBOLS_DEPTH, RuleBroken, check_entry, significant_digits
from tests.support.journal_entries import (
    make_entry,
    make_event,
    make_full_entry,
    make_update,
    make_withdrawal,
)
from tests.support.strategies import INT64_MAX, INT64_MIN, amounts, entries

LIMIT = 100


def broken(entry: Entry) -> RuleBroken:
    with pytest.raises(RuleBroken) as caught:
        check_entry(entry, LIMIT)
    assert str(caught.value) == f"{caught.value.path}: {caught.value.message}"
    return caught.value


def full(part: str, **fields: Any) -> Entry:
    """A full entry with fields of its last part of a kind changed; a dot leads to a single part."""
    entry = make_full_entry()
    owner = getattr(entry, part)
    for name, value in fields.items():
        setattr(owner[-1] if isinstance(owner, list) else owner, name, value)
    return entry


@given(entries())
def test_any_valid_entry_is_accepted(entry: Entry) -> None:
    check_entry(entry, 1 << 20)


# -- bytes ----------------------------------------------------------------------------------------

BYTES = [
    ("command_data", lambda data: make_entry(command_data=data)),
    ("response_data", lambda data: make_entry(response_data=data)),
    ("rsm_state_digest", lambda data: make_entry(rsm_state_digest=data)),
    ("events[1].event_data", lambda data: full("events", event_data=data)),
    ("outbox_appends[1].payload", lambda data: full("outbox_appends", payload=data)),
]


@pytest.mark.parametrize(("path", "make"), BYTES)
def test_bytes_have_a_limit_that_they_may_reach(path: str, make: Any) -> None:
    check_entry(make(b"x" * LIMIT), LIMIT)
    error = broken(make(b"x" * (LIMIT + 1)))
    assert (error.path, error.message) == (path, f"{LIMIT + 1} bytes; at most {LIMIT} are allowed")


# -- text -----------------------------------------------------------------------------------------

TEXTS = [
    ("events[1].event_topic", lambda text: full("events", event_topic=text)),
    ("events[1].event_key", lambda text: full("events", event_key=text)),
    ("outbox_appends[1].directive_id", lambda text: full("outbox_appends", directive_id=text)),
    ("outbox_appends[1].action_key", lambda text: full("outbox_appends", action_key=text)),
    (
        "outbox_appends[1].idempotency_key",
        lambda text: full("outbox_appends", idempotency_key=text),
    ),
    (
        "cash_withdrawal_side_effect.request_id",
        lambda text: full("cash_withdrawal_side_effect", request_id=text),
    ),
    ("balance_updates[1].reference_id", lambda text: full("balance_updates", reference_id=text)),
    ("pre_digest.symbols['BTC'][1]", lambda text: with_symbols({"BTC": [1, text]})),
    ("pre_digest.symbols", lambda text: with_symbols({text: 1})),
]


def with_symbols(symbols: dict[str, Any]) -> Entry:
    return make_entry(pre_digest=Digest(symbols=symbols))


@pytest.mark.parametrize(("path", "make"), TEXTS)
@pytest.mark.parametrize("text", ["a\0b", "\0", "é\0"])
def test_text_holds_no_nul(path: str, make: Any, text: str) -> None:
    error = broken(make(text))
    assert error.path == path
    assert "NUL" in error.message


@pytest.mark.parametrize(("path", "make"), TEXTS)
@pytest.mark.parametrize(("text", "longer"), [("é" * 512, "é" * 513), ("𝄞" * 256, "𝄞" * 256 + "x")])
def test_the_limit_of_text_counts_its_bytes(path: str, make: Any, text: str, longer: str) -> None:
    check_entry(make(text), LIMIT)
    error = broken(make(longer))
    assert error.path == path
    assert error.message == f"text of {len(longer.encode())} bytes; at most 1024 are allowed"


@pytest.mark.parametrize(("path", "make"), TEXTS)
def test_text_is_valid_utf8(path: str, make: Any) -> None:
    error = broken(make("a\ud800"))
    assert error.path == path
    assert "not valid UTF-8" in error.message


# -- decimals -------------------------------------------------------------------------------------

DECIMALS = [
    *(
        (f"fill_side_effects[1].{name}", "fill_side_effects", name)
        for name in (
            "taker_ledger_delta",
            "maker_ledger_delta",
            "taker_premium_delta",
            "maker_premium_delta",
            "underlying_notional",
        )
    ),
    ("cash_withdrawal_side_effect.amount", "cash_withdrawal_side_effect", "amount"),
    ("cash_withdrawal_side_effect.balance_after", "cash_withdrawal_side_effect", "balance_after"),
    ("balance_updates[1].delta", "balance_updates", "delta"),
    ("balance_updates[1].balance_after", "balance_updates", "balance_after"),
]


@pytest.mark.parametrize(("path", "part", "name"), DECIMALS)
def test_decimals_have_at_most_28_significant_digits(path: str, part: str, name: str) -> None:
    for text in ("9" * 28, "-" + "9" * 14 + "." + "9" * 14, "0." + "9" * 28, "000" + "9" * 25):
        check_entry(full(part, **{name: text}), LIMIT)
    error = broken(full(part, **{name: "9" * 14 + "." + "9" * 15}))
    assert error.path == path
    assert "29 significant digits; at most 28" in error.message


@pytest.mark.parametrize(
    ("text", "digits"),
    [("0", 1), ("-0.00", 1), ("007", 1), ("7.00", 3), ("-12.5", 3), ("0.0005", 1), ("10", 2)],
)
def test_leading_zeros_are_not_significant(text: str, digits: int) -> None:
    assert significant_digits(text) == digits


@given(amounts)
def test_decimals_of_any_valid_shape_are_counted(text: str) -> None:
    digits = text.lstrip("-").replace(".", "").lstrip("0")
    assert significant_digits(text) == max(len(digits), 1)


# -- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [2, INT64_MAX])
def test_a_fill_points_into_the_events(index: int) -> None:
    check_entry(full("fill_side_effects", event_idx=1), LIMIT)
    error = broken(full("fill_side_effects", event_idx=index))
    assert error.path == "fill_side_effects[1].event_idx"
    assert error.message == f"{index} points past the entry's 2 events"


def test_a_fill_without_events_is_refused() -> None:
    entry = make_full_entry(events=[])
    assert broken(entry).path == "fill_side_effects[0].event_idx"


# -- symbols --------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        INT64_MAX,
        INT64_MIN,
        1.5,
        -0.0,
        "",
        "x",
        [],
        {},
        [[{}]],
        {"a": [1, None]},
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["pre_digest", "post_digest"])
def test_symbols_hold_what_json_and_messagepack_both_can(name: str, value: object) -> None:
    check_entry(make_entry(**{name: Digest(symbols={"S": value})}), LIMIT)


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        (INT64_MAX + 1, "['S']", "signed 64-bit"),
        (INT64_MIN - 1, "['S']", "signed 64-bit"),
        (float("nan"), "['S']", "not finite"),
        ([float("inf")], "['S'][0]", "not finite"),
        (b"bytes", "['S']", "a bytes is not"),
        ({"a": [1, {"b": b""}]}, "['S']['a'][1]['b']", "a bytes is not"),
        ({5: 1}, "['S']", "key 5 is not text"),
        ({None: 1}, "['S']", "key None is not text"),
        pytest.param(msgpack.Ext(5, b"x"), "['S']", "is not a null", id="ext"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["pre_digest", "post_digest"])
def test_symbols_hold_nothing_else(name: str, value: object, path: str, message: str) -> None:
    error = broken(make_entry(**{name: Digest(symbols={"S": value})}))
    assert error.path == f"{name}.symbols{path}"
    assert message in error.message


def test_symbols_are_nested_up_to_a_limit() -> None:
    check_entry(with_symbols({"S": nested(MAX_SYMBOLS_DEPTH - 2)}), LIMIT)
    error = broken(with_symbols({"S": nested(MAX_SYMBOLS_DEPTH - 1)}))
    assert f"more than {MAX_SYMBOLS_DEPTH} levels" in error.message


@given(st.integers(MAX_SYMBOLS_DEPTH, 400))
def test_symbols_nested_deeper_are_refused_whatever_the_depth(depth: int) -> None:
    assert "levels deep" in broken(with_symbols({"S": nested(depth)})).message


# -- the first rule that is broken, and what is normalised ----------------------------------------


def test_the_first_broken_rule_is_reported() -> None:
    entry = make_entry(
        events=[make_event(event_key="\0")],
        balance_updates=[make_update(0, 1, "1" * 28 + ".5")],
        cash_withdrawal_side_effect=make_withdrawal(1, "1"),
    )
    assert broken(entry).path == "events[0].event_key"
