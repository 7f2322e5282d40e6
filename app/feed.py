"""A market-by-order feed as journal entries. Pure: lines of CSV in, entries out, row by row.

The same row always becomes the same entry, byte for byte, so replaying a feed journals nothing
twice:

- `request_uuid` is the UUIDv5 of `FEED_NAMESPACE` and the row number (the first row behind the
  header is 1). Hence two *different* feeds collide in one journal, which answers 409.
- `command_data` is a version byte and the row as a MessagePack map under its column names.
- a trade's order id is 0, which stands for none: then `order_id` and `event_key` are null.
- an `F` row is the fill of a resting order and `side` is the maker's: a maker on the bid pays
  price × size and the taker receives it, on the ask the other way round. Auctions report no side
  (`N`); those fills are booked as if the maker were the bid.
- `R` (clear the book) has no event.
- digests stay at their default: the feed knows nothing of an engine's state.
- after every `ROWS_PER_TICK` rows comes a `TickSnapshot` with a UUID of its own (`tick` and the row
  number), the time of that row, and one event on topic `ticks`.
"""

import csv
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Annotated, Final, Literal
from uuid import UUID, uuid5

import msgspec
from msgspec import Meta, Struct

from app.errors import JournalError
from app.model.accounting import EXACT, decimal_text
from app.model.entry import MAX_INT64, Count, Entry, Event, FillSideEffect, Int64

FEED_NAMESPACE: Final = UUID("6f2d9c1e-58b4-5a37-9d0e-3c1b7a64e2f5")
ROWS_PER_TICK: Final = 1000
NO_PRICE: Final = MAX_INT64
_WIRE_VERSION: Final = b"\x01"
_COMMANDS: Final = {
    "A": "CreateOrder",
    "M": "ReplaceOrder",
    "C": "CancelOrder",
    "T": "ExecuteTrade",
    "F": "FillOrder",
    "R": "ClearBook",
}
_EVENTS: Final = {
    "A": ("order-updates", "OrderUpdate"),
    "M": ("order-updates", "OrderUpdate"),
    "C": ("order-updates", "OrderUpdate"),
    "T": ("trades", "Trade"),
    "F": ("fills", "OrderFilled"),
}


class FeedError(JournalError):
    """A row can't be journaled: `row` is its number (0: the header), `reason` what is wrong."""

    def __init__(self, feed: str, row: int, reason: str) -> None:
        super().__init__(f"{feed}: row {row}: {reason}")
        self.feed = feed
        self.row = row
        self.reason = reason


class Row(Struct, gc=False, frozen=True):
    """One market-by-order event, in the order of the columns."""

    ts_event_ns: Count
    ts_recv_ns: Count
    sequence: Count
    action: Literal["A", "M", "C", "T", "F", "R"]
    side: Literal["B", "A", "N"]
    price_1e9: Int64
    size: Annotated[int, Meta(ge=0, le=2**32 - 1)]
    order_id: Count
    flags: Count


COLUMNS: Final = Row.__struct_fields__
_encode: Final = msgspec.msgpack.Encoder().encode


def feed_entries(lines: Iterable[str], feed: str) -> Iterator[Entry]:
    """Turn the lines of a feed, header first, into entries. `feed` is its name, for errors.

    Raises `FeedError` at the first row that can't be journaled; the rows before it have been
    yielded.
    """
    row_number = 0
    rows = csv.reader(lines, strict=True)
    try:
        _check_header(next(rows, []))
        for row_number, values in enumerate(rows, 1):
            row = _row(values)
            yield row_entry(row_number, row)
            if row_number % ROWS_PER_TICK == 0:
                yield tick_entry(row_number, row)
    except (csv.Error, EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
        raise FeedError(feed, row_number + 1, f"the feed can't be read on: {error}") from error
    except ValueError as error:
        raise FeedError(feed, row_number, str(error)) from None


def row_entry(row_number: int, row: Row) -> Entry:
    """The entry of one row. Raises `ValueError` for an amount that an entry can't hold."""
    fills = [_fill(row_number, row)] if row.action == "F" else []
    return Entry(
        request_uuid=uuid5(FEED_NAMESPACE, str(row_number)),
        received_ts_ms=row.ts_recv_ns // 10**6,
        command_type=_COMMANDS[row.action],
        command_data=_WIRE_VERSION + _encode(row),
        order_id=row.order_id or None,
        events=[_event(row_number, row)] if row.action in _EVENTS else [],
        fill_side_effects=fills,
    )


def tick_entry(row_number: int, row: Row) -> Entry:
    """The `TickSnapshot` behind row `row_number`: the command that blocks commit to."""
    tick = _WIRE_VERSION + _encode({"row": row_number, "ts_recv_ns": row.ts_recv_ns})
    event = Event(
        event_topic="ticks", event_data=tick, l2_sequence=row_number, event_type="TickSnapshot"
    )
    return Entry(
        request_uuid=uuid5(FEED_NAMESPACE, f"tick {row_number}"),
        received_ts_ms=row.ts_recv_ns // 10**6,
        command_type="TickSnapshot",
        command_data=tick,
        events=[event],
    )


def _check_header(values: list[str]) -> None:
    if tuple(values) != COLUMNS:
        raise ValueError(
            f"the columns are {','.join(values)!r:.200}; {','.join(COLUMNS)!r} is expected"
        )


def _row(values: list[str]) -> Row:
    if len(values) != len(COLUMNS):
        raise ValueError(f"{len(values)} columns; {len(COLUMNS)} are expected")
    try:
        return msgspec.convert(dict(zip(COLUMNS, values, strict=True)), Row, strict=False)
    except msgspec.ValidationError as error:
        message, _, column = str(error).partition(" - at `$.")
        name = column.rstrip("`")
        found = f" {values[COLUMNS.index(name)]!r:.80}" if name in COLUMNS else ""
        raise ValueError(f"{name}{found}: {message}") from None


def _event(row_number: int, row: Row) -> Event:
    topic, event_type = _EVENTS[row.action]
    data = {"row": row_number, "side": row.side, "price_1e9": row.price_1e9, "size": row.size}
    return Event(
        event_topic=topic,
        event_key=str(row.order_id) if row.order_id else None,
        event_data=_WIRE_VERSION + _encode(data),
        l2_sequence=row_number,
        event_type=event_type,
    )


def _fill(row_number: int, row: Row) -> FillSideEffect:
    if row.price_1e9 == NO_PRICE:
        raise ValueError("a fill without a price")
    amount = Decimal(row.price_1e9 * row.size).scaleb(-9, EXACT)
    paid, received = decimal_text(amount.copy_negate()), decimal_text(amount)
    maker, taker = (received, paid) if row.side == "A" else (paid, received)
    return FillSideEffect(
        event_idx=0,
        trade_id=row_number,
        taker_ledger_delta=taker,
        maker_ledger_delta=maker,
        taker_premium_delta="0",
        maker_premium_delta="0",
    )
