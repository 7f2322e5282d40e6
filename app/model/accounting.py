"""Fill accounting, and the side effect of a fill that is built from it (protocol, section 3).

Everything here is exact: sums are made in a context that holds any two legal operands without
rounding, and traps if it ever has to, because the default context rounds at 28 digits without a
word.
"""

from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Final

from app.errors import RequestError
from app.model.entry import FillSideEffect
from app.model.rules import MAX_SIGNIFICANT_DIGITS

MAX_FRACTION_DIGITS: Final = 28
# 28 digits before the point and 28 behind it, the carry of a sum, and room to spare.
EXACT: Final = Context(prec=64, traps=[Inexact, InvalidOperation, Overflow])


class AccountingError(RequestError):
    """A fill whose accounting contradicts itself, or whose numbers an entry can't hold.

    `side` is "taker" or "maker" (empty when the number has no side).
    """

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


@dataclass(frozen=True, slots=True, kw_only=True)
class FillAccounting:
    """What one fill did to the cash of both sides, as the engine computed it."""

    trade_id: int
    taker_realized_pnl: Decimal
    maker_realized_pnl: Decimal
    taker_premium_delta: Decimal
    maker_premium_delta: Decimal
    taker_net_cash_delta: Decimal
    maker_net_cash_delta: Decimal


def fill_side_effect(
    event_idx: int, accounting: FillAccounting, underlying_notional: Decimal | None = None
) -> FillSideEffect:
    """Build the side effect of the fill in event `event_idx` of the entry.

    A side's ledger delta is its net cash delta less its premium delta. Raises `AccountingError`
    when a side's net cash delta is not its realized PnL plus its premium delta, or a number is out
    of range.
    """
    taker_ledger, taker_premium = _side_deltas(
        "taker",
        accounting.taker_realized_pnl,
        accounting.taker_premium_delta,
        accounting.taker_net_cash_delta,
    )
    maker_ledger, maker_premium = _side_deltas(
        "maker",
        accounting.maker_realized_pnl,
        accounting.maker_premium_delta,
        accounting.maker_net_cash_delta,
    )
    return FillSideEffect(
        event_idx=event_idx,
        trade_id=accounting.trade_id,
        taker_ledger_delta=taker_ledger,
        maker_ledger_delta=maker_ledger,
        taker_premium_delta=taker_premium,
        maker_premium_delta=maker_premium,
        underlying_notional=None
        if underlying_notional is None
        else _checked_text("", "underlying_notional", underlying_notional),
    )


def decimal_text(value: Decimal) -> str:
    """Write `value` exactly, in the shortest plain notation: what decimal fields of an entry take.

    Raises `ValueError` when it is not finite, or has more than 28 significant digits, or more than
    28 behind the point.
    """
    if not value.is_finite():
        raise ValueError(f"{value} is not finite")
    if not value:
        return "0"
    if value.adjusted() >= MAX_SIGNIFICANT_DIGITS:
        raise ValueError(f"{value} has more than {MAX_SIGNIFICANT_DIGITS} digits before the point")
    # Shorten the digits, not the text: an exponent of -10**9 would spell out a billion zeros.
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"{value} is not finite")
    kept = len(digits)
    while digits[kept - 1] == 0 and exponent < 0:
        kept -= 1
        exponent += 1
    if exponent < -MAX_FRACTION_DIGITS:
        raise ValueError(f"{value} has more than {MAX_FRACTION_DIGITS} digits behind the point")
    if kept > MAX_SIGNIFICANT_DIGITS:
        raise ValueError(f"{value} has {kept} significant digits; at most 28 are allowed")
    return format(Decimal((sign, digits[:kept], exponent)), "f")


def _side_deltas(
    side: str, realized_pnl: Decimal, premium: Decimal, net_cash: Decimal
) -> tuple[str, str]:
    """The ledger and the premium delta of one side, once its cash adds up."""
    _checked_text(side, f"{side}_realized_pnl", realized_pnl)
    premium_text = _checked_text(side, f"{side}_premium_delta", premium)
    _checked_text(side, f"{side}_net_cash_delta", net_cash)
    due = EXACT.add(realized_pnl, premium)
    if net_cash != due:
        raise AccountingError(
            side,
            f"{side}: net_cash_delta {net_cash} is not realized_pnl {realized_pnl} "
            f"+ premium_delta {premium} = {due}",
        )
    ledger = EXACT.subtract(net_cash, premium)
    return _checked_text(side, f"{side}_ledger_delta", ledger), premium_text


def _checked_text(side: str, name: str, value: Decimal) -> str:
    try:
        return decimal_text(value)
    except ValueError as error:
        raise AccountingError(side, f"{name}: {error}") from None
