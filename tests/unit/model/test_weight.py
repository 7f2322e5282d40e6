"""What a body would cost in memory is told before it is decoded."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidEntries, TooManyEntries, TooManyValues
from app.model.weight import check_weight, weigh
from tests.support.http_entries import json_entry, msgpack_entry, packed
from tests.support.journal_entries import make_event, make_full_entry
from tests.support.wire_forms import to_msgpack

MIB = 1 << 20
MAX_BODY_BYTES = 4 * MIB
MAX_ENTRIES = 10_000
EVENT = {"event_topic": "t", "event_data": b"", "event_type": "A"}
VALUE_BYTES = 96
PLACE = "PLACE"


def check(body: bytes, *, as_json: bool = False, block_words: Sequence[bytes] = ()) -> None:
    check_weight(
        body,
        json=as_json,
        max_body_bytes=MAX_BODY_BYTES,
        max_entries=MAX_ENTRIES,
        block_words=block_words,
    )


def many(unit: bytes, count: int, **fields: Any) -> bytes:
    """A body of one entry that has a list of `count` times `unit` in place of `PLACE`."""
    array = b"\xdd" + count.to_bytes(4) + unit * count
    body = packed(msgpack_entry(**fields))
    assert body.count(msgpack.packb(PLACE)) == 1
    return body.replace(msgpack.packb(PLACE), array)


def symbols(value: Any) -> dict[str, Any]:
    return {"pre_digest": {"symbols": {"a": value}}}


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=300)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20)),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)  # fmt: skip


def weighed(value: Any) -> int:
    if isinstance(value, dict):
        return VALUE_BYTES + sum(weighed(key) + weighed(item) for key, item in value.items())
    if isinstance(value, list):
        return VALUE_BYTES + sum(map(weighed, value))
    if not isinstance(value, str) or value.isascii():
        return VALUE_BYTES
    return VALUE_BYTES + 24 + len(value.encode()) * (4 if max(value) > "\uffff" else 2)


@settings(max_examples=50)
@given(values)
def test_values_are_weighed_as_another_decoder_sees_them(value: Any) -> None:
    assert weigh(msgpack.packb(value), 10**6) == weighed(value)


@pytest.mark.parametrize("size", [2**16, 2**16 + 7, 300])
@pytest.mark.parametrize("value", [b"x", "x", [None]])
def test_long_values_are_weighed_too(value: Any, size: int) -> None:
    data = msgpack.packb([value * size, 1])
    assert weigh(data, 10**8) == weighed([value * size, 1])


@given(st.text(max_size=40))
def test_text_takes_no_more_than_it_is_weighed(text: str) -> None:
    """Python keeps the UTF-8 of what is not ASCII besides, once somebody asked for it."""
    size_bytes = len(text.encode())
    kept = 0 if text.isascii() else size_bytes + 1
    assert sys.getsizeof(text) + kept <= size_bytes + weigh(msgpack.packb(text), 10**6)


def test_weighing_ends_at_the_limit_and_at_the_end_of_what_lies_about_its_length() -> None:
    assert 1000 < weigh(b"\xdd\xff\xff\xff\xff" + b"\x80" * MIB, 1000) < 3000
    assert weigh(b"\xdd\xff\xff\xff\xff\x80\x80", 1000) == 3 * VALUE_BYTES
    assert weigh(b"\xc6\xff\xff\xff\xff\x80\x80", 1000) == VALUE_BYTES


@given(st.binary(max_size=100))
def test_weighing_takes_any_bytes(data: bytes) -> None:
    assert 0 <= weigh(data, 5000) <= 11_000


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(many(b"\x80", 3 * MIB, **symbols(PLACE)), id="empty maps"),
        pytest.param(many(b"\x90", MIB, **symbols(PLACE)), id="empty lists"),
        pytest.param(many(b"\x01", 3 * MIB, **symbols(PLACE)), id="numbers"),
        pytest.param(many(b"\xa2ab", MIB, **symbols(PLACE)), id="short text"),
        pytest.param(many(b"\x80", MIB, command_identity_hash=PLACE), id="in place of a hash"),
        pytest.param(many(msgpack.packb(EVENT), 80_000, events=PLACE), id="events"),
        pytest.param(many(b"\x80", MIB, **symbols(PLACE))[:-1], id="cut short"),
        pytest.param(many(b"\x80", MIB, **symbols(PLACE)) + b"\x00", id="trailing"),
        pytest.param(
            many(b"\x80", MIB, **symbols(PLACE)).replace(b"\x84", b"\x85", 1)
            + msgpack.packb("pre_digest") + b"\x80", id="hidden behind another digest",
        ),
        pytest.param(
            packed(*[msgpack_entry(**symbols([{}] * 1500))] * 500), id="a little in each entry"
        ),
    ],
)  # fmt: skip
def test_a_body_that_would_be_many_times_as_large_in_memory_is_refused(body: bytes) -> None:
    with pytest.raises(TooManyValues, match="send it as several"):
        check(body)


def test_what_a_block_takes_is_weighed_where_there_is_one() -> None:
    body = packed(*[msgpack_entry(command_type="Tick", events=[EVENT] * 4)] * 4000)
    check(body, block_words=[b"Tack"])
    with pytest.raises(TooManyValues):
        check(body, block_words=[b"Tack", b"Tick"])


@pytest.mark.parametrize("item", ["{}", "[]", "1", '{"":{}}', '{"entries":[', '""'], ids=str)
def test_so_is_one_in_json(item: str) -> None:
    body = '{"entries":[' + ",".join([item] * (2 * MIB // (len(item) + 1))) + "]}"
    with pytest.raises(TooManyValues):
        check(body.encode(), as_json=True)


@pytest.mark.parametrize(
    "opening",
    [b"\x81\xa7entries", b"\xde\x00\x01\xa7entries", b"\xdf\x00\x00\x00\x01\xd9\x07entries"],
)
def test_too_many_entries_are_refused_before_one_is_decoded(opening: bytes) -> None:
    body = opening + b"\xdd" + (2 * MIB).to_bytes(4) + b"\x80" * (2 * MIB)
    with pytest.raises(TooManyEntries, match=f"{2 * MIB} entries; at most {MAX_ENTRIES}"):
        check(body)


def test_a_second_list_of_entries_hides_nothing() -> None:
    body = b"\x82\xa7entries\xdd" + MIB.to_bytes(4) + b"\x80" * MIB + b"\xa7entries\x90"
    with pytest.raises(InvalidEntries, match="the one key `entries`"):
        check(body)


def full_entry(events: int = 2) -> Any:
    return make_full_entry(
        command_data=bytes(range(256)) * 3,
        events=[make_event(event_data=b"\x80" * 200) for _ in range(events)],
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x81\xa7entries\xdc\x04\xb0" + to_msgpack(full_entry()) * 1200, id="full"),
        pytest.param(many(to_msgpack(full_entry(50)), 100, more=PLACE), id="nested anyhow"),
        pytest.param(packed(*[msgpack_entry(command_data=bytes(MIB))] * 3), id="large fields"),
        pytest.param(many(b"\x80", MAX_BODY_BYTES // 32 - 200, **symbols(PLACE)), id="light"),
        pytest.param(b"\xc1" * MIB, id="nothing"),
    ],
)
def test_other_bodies_are_left_to_the_decoder(body: bytes) -> None:
    assert len(body) <= MAX_BODY_BYTES
    check(body)


def test_a_large_body_of_full_entries_passes_in_json() -> None:
    entry = json_entry(
        events=[{**EVENT, "event_data": "AAAA" * 100}] * 2,
        pre_digest={"next_order_id": 1, "symbols": {"BTC": 1}},
        duration_ms=1,
    )
    check(json.dumps({"entries": [entry] * 2_500}).encode(), as_json=True)
