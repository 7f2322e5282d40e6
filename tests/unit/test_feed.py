"""Rows of a market-by-order feed as entries."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from decimal import Context, Decimal
from pathlib import Path
from uuid import uuid5

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.feed import (
    COLUMNS,
    FEED_NAMESPACE,
    NO_PRICE,
    FeedError,
    Row,
    feed_entries,
    row_entry,
)
from app.model.codec import RequestCodec, canonical_bytes
from app.model.entry import ZERO_DIGEST, Entry
from app.replay import FeedFile

HEADER = ",".join(COLUMNS)
WIDE = Context(prec=100)
REAL_FEED = Path(os.environ.get("JOURNAL_TEST_FEED", "../shared/data/es_mbo_20231225.csv.gz"))


def row(action: str = "A", side: str = "B", price: int = 4_799_250_000_000, **more: int) -> str:
    values = {"ts_event_ns": 11, "ts_recv_ns": 1703462400123456789, "sequence": 682}
    values |= {"size": 3, "order_id": 77, "flags": 40, **more}
    first = [values[name] for name in COLUMNS[:3]]
    last = [values[name] for name in COLUMNS[6:]]
    return ",".join(map(str, [*first, action, side, price, *last]))


def entries(*rows: str) -> list[Entry]:
    return list(feed_entries(iter([f"{line}\n" for line in (HEADER, *rows)]), "feed.csv"))


@pytest.mark.parametrize(
    ("action", "command_type", "event"),
    [
        ("A", "CreateOrder", ("order-updates", "OrderUpdate")),
        ("M", "ReplaceOrder", ("order-updates", "OrderUpdate")),
        ("C", "CancelOrder", ("order-updates", "OrderUpdate")),
        ("T", "ExecuteTrade", ("trades", "Trade")),
        ("F", "FillOrder", ("fills", "OrderFilled")),
        ("R", "ClearBook", None),
    ],
)
def test_every_action_has_its_command_and_event(
    action: str, command_type: str, event: tuple[str, str] | None
) -> None:
    (entry,) = entries(row(action))
    assert entry.command_type == command_type
    assert entry.request_uuid == uuid5(FEED_NAMESPACE, "1")
    assert entry.received_ts_ms == 1703462400123
    assert entry.order_id == 77
    assert (entry.pre_digest, entry.post_digest) == (ZERO_DIGEST, ZERO_DIGEST)
    assert [(e.event_topic, e.event_type) for e in entry.events] == ([event] if event else [])
    assert [(e.event_key, e.l2_sequence) for e in entry.events] == ([("77", 1)] if event else [])
    assert bool(entry.fill_side_effects) == (action == "F")


def test_command_data_is_a_version_byte_and_the_row_as_a_map() -> None:
    (entry,) = entries(row(price=NO_PRICE))
    assert entry.command_data[0] == 1
    assert msgpack.unpackb(entry.command_data[1:]) == {
        "ts_event_ns": 11,
        "ts_recv_ns": 1703462400123456789,
        "sequence": 682,
        "action": "A",
        "side": "B",
        "price_1e9": NO_PRICE,
        "size": 3,
        "order_id": 77,
        "flags": 40,
    }


def test_order_id_0_stands_for_none() -> None:
    (entry,) = entries(row("T", order_id=0))
    assert entry.order_id is None
    assert entry.events[0].event_key is None


@pytest.mark.parametrize(
    ("side", "taker", "maker"),
    [
        ("B", "14397.75", "-14397.75"),
        ("A", "-14397.75", "14397.75"),
        ("N", "14397.75", "-14397.75"),
    ],
)
def test_a_fill_moves_price_times_size_between_taker_and_maker(
    side: str, taker: str, maker: str
) -> None:
    effect = entries(row(), row("F", side))[1].fill_side_effects[0]
    assert (effect.event_idx, effect.trade_id) == (0, 2)
    assert (effect.taker_ledger_delta, effect.maker_ledger_delta) == (taker, maker)
    assert (effect.taker_premium_delta, effect.maker_premium_delta) == ("0", "0")


@given(
    price=st.integers(-(2**63), NO_PRICE - 1),
    size=st.integers(0, 2**32 - 1),
    side=st.sampled_from("BAN"),
)
def test_fill_amounts_are_exact_or_refused(price: int, size: int, side: str) -> None:
    filled = msgspec.convert([1, 2, 3, "F", side, price, size, 7, 0], list)
    exact = Decimal(price * size).scaleb(-9, WIDE)
    try:
        effect = row_entry(1, Row(*filled)).fill_side_effects[0]
    except ValueError:
        assert len(exact.normalize(WIDE).as_tuple().digits) > 28
    else:
        taker, maker = Decimal(effect.taker_ledger_delta), Decimal(effect.maker_ledger_delta)
        assert abs(taker) == abs(exact)
        assert taker == maker.copy_negate()


def test_a_tick_follows_every_1000_rows() -> None:
    found = entries(*[row(sequence=number) for number in range(2001)])
    assert len(found) == 2003
    ticks = [index for index, entry in enumerate(found) if entry.command_type == "TickSnapshot"]
    assert ticks == [1000, 2001]
    tick = found[1000]
    assert tick.order_id is None
    assert tick.request_uuid == uuid5(FEED_NAMESPACE, "tick 1000")
    assert [(e.event_topic, e.event_type) for e in tick.events] == [("ticks", "TickSnapshot")]
    assert len({entry.request_uuid for entry in found}) == 2003


def test_the_same_row_becomes_the_same_bytes() -> None:
    rows = [row("F"), row("T", order_id=0), row("R")]
    first, second = entries(*rows), entries(*rows)
    assert [canonical_bytes(e) for e in first] == [canonical_bytes(e) for e in second]


def test_rows_are_read_as_they_are_asked_for() -> None:
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        for line in [HEADER, *[row()] * 50]:
            taken += 1
            yield line

    found = feed_entries(lines(), "feed.csv")
    next(found)
    next(found)
    assert taken == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "0 columns; 9 are expected"),
        (row() + ",1", "10 columns"),
        (row("X"), "action 'X'"),
        (row(side="b"), "side 'b'"),
        (row(price=2**63), "price_1e9"),
        (row(order_id=-1), "order_id '-1'"),
        (row().replace("682", "682.5"), r"sequence '682\.5'"),
        (row().replace("682", ""), "sequence ''"),
        (row("F", price=NO_PRICE), "a fill without a price"),
        (row("F", price=NO_PRICE - 1, size=2**32 - 2), "29 significant digits"),
        ('"' + row(), "the feed can't be read on"),
    ],
)
def test_a_bad_row_is_named_and_the_rows_before_it_are_kept(bad: str, reason: str) -> None:
    kept: list[Entry] = []
    with pytest.raises(FeedError, match=rf"feed\.csv: row 2: .*{reason}") as error:
        kept.extend(feed_entries(iter([HEADER, row(), bad, row()]), "feed.csv"))
    assert error.value.row == 2


@pytest.mark.parametrize("lines", [[], ["a,b"], [HEADER.upper()]])
def test_another_header_is_refused(lines: list[str]) -> None:
    with pytest.raises(FeedError, match=r"row 0: the columns are .* is expected"):
        next(feed_entries(iter(lines), "feed.csv"))


def test_a_feed_that_breaks_off_is_named(tmp_path: Path) -> None:
    text = "\n".join([HEADER, *[row(sequence=number) for number in range(9999)]]).encode()
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(text) + packer.flush()
    path = tmp_path / "broken.csv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    read: list[Entry] = []
    with FeedFile(path) as feed:
        expected = r"broken\.csv\.gz: row \d+: the feed"
        with pytest.raises(FeedError, match=expected) as error:
            read.extend(feed.entries())
    # Every row up to the break, and the ticks behind each thousand of them.
    rows = error.value.row - 1
    assert len(read) == rows + rows // 1000 > 0


def test_a_plain_file_and_a_zipped_one_are_the_same_feed(tmp_path: Path) -> None:
    text = "\r\n".join([HEADER, row(), row("T"), ""]).encode()
    packer = zlib.compressobj(wbits=31)
    (tmp_path / "zipped").write_bytes(packer.compress(text) + packer.flush())
    (tmp_path / "plain").write_bytes(text)
    with FeedFile(tmp_path / "zipped") as zipped, FeedFile(tmp_path / "plain") as plain:
        assert list(zipped.entries()) == list(plain.entries()) == entries(row(), row("T"))


def test_a_file_without_line_breaks_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(b"0" * 1_000_000)
    with FeedFile(tmp_path / "zeros") as feed:
        with pytest.raises(FeedError, match="row 0: the columns are"):
            next(feed.entries())
        assert feed.read_bytes < 100_000


@pytest.mark.skipif(not REAL_FEED.exists(), reason=f"the real feed is not at {REAL_FEED}")
def test_the_real_feed_becomes_valid_entries() -> None:
    codec = RequestCodec(max_entries=1, max_field_bytes=4096)
    kinds: Counter[str | None] = Counter()
    with FeedFile(REAL_FEED) as feed:
        for entry in feed.entries():
            kinds[entry.command_type] += 1
            if entry.fill_side_effects or entry.command_type == "TickSnapshot":
                body = msgspec.msgpack.encode({"entries": [msgspec.Raw(canonical_bytes(entry))]})
                codec.prepare(body, json=False)
        assert feed.read_bytes == feed.size_bytes
    assert kinds == {
        "CreateOrder": 29216,
        "ReplaceOrder": 12233,
        "CancelOrder": 17999,
        "ExecuteTrade": 2973,
        "FillOrder": 6371,
        "TickSnapshot": 68,
    }
