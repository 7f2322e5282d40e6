"""Fill accounting: exact, and refused where a side's cash does not add up."""

from dataclasses import replace
from decimal import Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import RequestError
from app.model.accounting import AccountingError, FillAccounting, decimal_text, fill_side_effect
from app.model.entry import FillSideEffect

WIDE = Context(prec=200)
# The fill of the original's own test.
FILL = FillAccounting(
    trade_id=42,
    taker_realized_pnl=Decimal("-1.25"),
    maker_realized_pnl=Decimal("1.25"),
    taker_premium_delta=Decimal("-0.07"),
    maker_premium_delta=Decimal("0.07"),
    taker_net_cash_delta=Decimal("-1.32"),
    maker_net_cash_delta=Decimal("1.32"),
)


def decimals(digits: int = 28) -> st.SearchStrategy[Decimal]:
    """Decimals that an entry can hold: at most 28 digits, at most 28 of them behind the point."""
    units = st.integers(-(10**digits) + 1, 10**digits - 1)
    return st.builds(
        lambda unit, places: exact_sum(Decimal(f"{unit}E-{places}")), units, st.integers(0, 28)
    )


def exact_sum(*values: Decimal) -> Decimal:
    total = Decimal(0)
    for value in values:
        total = WIDE.add(total, value)
    return total


def test_the_ledger_delta_is_net_cash_less_premium() -> None:
    assert fill_side_effect(3, FILL, Decimal("4800.250")) == FillSideEffect(
        event_idx=3,
        trade_id=42,
        taker_ledger_delta="-1.25",
        maker_ledger_delta="1.25",
        taker_premium_delta="-0.07",
        maker_premium_delta="0.07",
        underlying_notional="4800.25",
    )
    assert fill_side_effect(0, FILL).underlying_notional is None


@pytest.mark.parametrize("side", ["taker", "maker"])
def test_cash_that_does_not_add_up_is_refused_naming_side_and_numbers(side: str) -> None:
    field = f"{side}_net_cash_delta"
    off = replace(FILL, **{field: getattr(FILL, field) + Decimal("0.01")})
    with pytest.raises(AccountingError) as refused:
        fill_side_effect(0, off)
    assert refused.value.side == side
    for number in (f"{side}_realized_pnl", f"{side}_premium_delta", field):
        assert str(getattr(off, number)) in str(refused.value)
    assert isinstance(refused.value, RequestError)


@given(pnl=decimals(26), premium=decimals(26), wrong=st.booleans())
def test_sums_are_exact_where_the_default_context_would_round(
    pnl: Decimal, premium: Decimal, wrong: bool
) -> None:
    net = exact_sum(pnl, premium, Decimal("1E-28") if wrong else Decimal(0))
    accounting = replace(
        FILL, taker_realized_pnl=pnl, taker_premium_delta=premium, taker_net_cash_delta=net
    )
    try:
        effect = fill_side_effect(0, accounting)
    except AccountingError as error:
        too_long = len(net.normalize(WIDE).as_tuple().digits) > 28
        assert wrong or too_long, error  # noqa: PT017
    else:
        assert not wrong
        assert Decimal(effect.taker_ledger_delta) == pnl
        assert Decimal(effect.taker_premium_delta) == premium


def test_28_digits_are_added_without_rounding() -> None:
    pnl = Decimal(9999999999999999999999999999)
    accounting = replace(
        FILL,
        taker_realized_pnl=pnl,
        taker_premium_delta=Decimal("-0.4"),
        taker_net_cash_delta=pnl,
    )
    # At 28 digits the sum rounds to `pnl`, and this would pass.
    with pytest.raises(AccountingError, match=r"= 9999999999999999999999999998\.6"):
        fill_side_effect(0, accounting)


@given(decimals())
def test_decimal_text_is_exact_plain_and_within_the_limits_of_an_entry(value: Decimal) -> None:
    text = decimal_text(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert text == "0" or not text.startswith("-0") or text[2] == "."
    assert "." not in text or not text.endswith(("0", "."))
    assert len(text.strip("-0").replace(".", "")) <= 28


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1.500", "1.5"),
        ("-0.00", "0"),
        ("1E+3", "1000"),
        ("100", "100"),
        ("-1E-28", "-0." + "0" * 27 + "1"),
    ],
)
def test_decimal_text_is_the_shortest(value: str, text: str) -> None:
    assert decimal_text(Decimal(value)) == text


@pytest.mark.parametrize(
    "value", ["NaN", "sNaN", "Infinity", "1E+28", "1E-29", "1" * 29, "1E+999999", "1E-999999"]
)
def test_a_number_that_an_entry_can_not_hold_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match=r"finite|digits"):
        decimal_text(Decimal(value))
    with pytest.raises(AccountingError, match="maker_premium_delta"):
        fill_side_effect(0, replace(FILL, maker_premium_delta=Decimal(value)))
