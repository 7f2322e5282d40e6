"""What a block takes of entries is the same whether they were decoded or not."""

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chain import bulk
from app.chain.content import ALL_COMMANDS, Content, content_of
from app.chain.header import EVENT_SHELL, SHELL_CUTS
from app.model.codec import PreparedRequest
from app.model.entry import Entry, Hash32
from app.model.packing import array_header
from app.service.compiled import GATHERING, LANES, load
from tests.support.journal_entries import make_entry, make_event, make_full_entry
from tests.support.strategies import entries
from tests.support.wire_forms import to_msgpack

EVERYTHING: Final = frozenset({ALL_COMMANDS})
OTHER_ENTRY: Final = make_entry(command_type="Other", events=[make_event()])


@pytest.fixture(scope="module", autouse=True)
def compiled() -> Iterator[None]:
    pytest.importorskip("numba", reason="numba has no wheel here")
    bulk.use(load(LANES), load(GATHERING))
    yield
    bulk.use(None)


def wide(value: Any) -> bytes:
    """MessagePack with the widest headers that there are."""
    match value:
        case bool() | None | float():
            return bytes(msgpack.packb(value))
        case int():
            return b"\xd3" + struct.pack(">q", value)
        case str():
            return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
        case bytes():
            return b"\xc6" + struct.pack(">I", len(value)) + value
        case list():
            return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(wide, value))
        case dict():
            pairs = b"".join(wide(part) for pair in value.items() for part in pair)
            return b"\xdf" + struct.pack(">I", len(value)) + pairs
    raise TypeError(value)


def in_text(value: dict[str, Any]) -> dict[str, Any]:
    """The fields in reverse, with the identity hash as hex text in both cases."""
    fields = {**value}
    if sent := value.get("command_identity_hash"):
        fields["command_identity_hash"] = f"0x{sent[:16].hex()}{sent[16:].hex().upper()}"
    if events := value.get("events"):
        fields["events"] = [dict(reversed(event.items())) for event in events]
    return dict(reversed(fields.items()))


def with_nil(value: dict[str, Any]) -> dict[str, Any]:
    """What may be nil, and would be left out, is spelled out."""
    events = [{"event_key": None, "l2_sequence": None, **event} for event in value["events"]]
    return {"command_type": None, "command_identity_hash": None, **value, "events": events}


FORMS: Final[dict[str, Callable[[Entry], bytes]]] = {
    "usual": to_msgpack,
    "wide": lambda entry: wide(msgpack.unpackb(to_msgpack(entry))),
    "in-text": lambda entry: msgpack.packb(in_text(msgpack.unpackb(to_msgpack(entry)))),
    "with-nil": lambda entry: msgpack.packb(
        with_nil({"events": [], **msgpack.unpackb(to_msgpack(entry))})
    ),
}


def packed(batch: Sequence[Entry], form: Callable[[Entry], bytes] = to_msgpack) -> PreparedRequest:
    """A request of entries that nobody has decoded."""
    array = array_header(len(batch)) + b"".join(map(form, batch))
    return PreparedRequest([entry.request_uuid.int for entry in batch], memoryview(array))


def decoded(batch: Sequence[Entry]) -> PreparedRequest:
    request = packed(batch)
    return PreparedRequest(request.keys, request.array, list(batch))


def undecoded(requests: list[PreparedRequest], types: frozenset[str]) -> Content | None:
    content = content_of(requests, types)
    assert not any(request.is_decoded for request in requests)
    return content


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(batch=st.lists(entries(), min_size=1, max_size=10))
def test_entries_that_were_not_decoded_give_the_same(form: str, batch: list[Entry]) -> None:
    for types in EVERYTHING, frozenset({"TickSnapshot"}):
        assert undecoded([packed(batch, FORMS[form])], types) == content_of([decoded(batch)], types)


@pytest.mark.parametrize("form", FORMS)
def test_an_entry_with_everything_gives_the_same(form: str) -> None:
    batch = [
        make_full_entry(command_identity_hash=sent)
        for sent in (None, Hash32(bytes(32)), Hash32(bytes(31) + b"\1"), Hash32(b"\xab" * 32))
    ]
    content = undecoded([packed(batch, FORMS[form])], EVERYTHING)
    assert content is not None
    assert content == content_of([decoded(batch)], EVERYTHING)
    assert content.identities[2:] == [bytes(31) + b"\1", b"\xab" * 32]


# Around the widths of headers and numbers, and the ends of Keccak's blocks.
SIZES: Final = [0, 1, 15, 16, 31, 32, 135, 136, 137, 255, 256, 1000, 65_535, 65_536]
NUMBERS: Final = [None, 0, 127, 128, 2**8, 2**16, 2**32, 2**63 - 1, -1, -32, -33, -129, -(2**63)]


@pytest.mark.parametrize("form", FORMS)
def test_events_of_any_size_give_the_same(form: str) -> None:
    events = [make_event(event_data=bytes(range(256)) * 256)]
    events += [make_event(event_data=b"\xff" * size) for size in SIZES]
    events += [make_event(event_key="k" * size) for size in SIZES[:12]]
    events += [make_event(topic="t" * size) for size in SIZES[1:10]]
    events += [make_event(l2_sequence=number) for number in NUMBERS]
    batch = [make_entry(command_type="A", events=events), OTHER_ENTRY]
    batch += [make_entry(command_type="B", command_data=b"\1" * size) for size in SIZES[1:]]
    expected = content_of([decoded(batch)], EVERYTHING)
    assert undecoded([packed(batch, FORMS[form])], EVERYTHING) == expected


def test_the_content_of_requests_is_that_of_their_entries_in_order() -> None:
    ticks = [make_entry(command_type="Tick", received_ts_ms=number) for number in range(7)]
    none = make_entry(received_ts_ms=99)
    batches = [
        [ticks[0]],
        [none, ticks[1]],
        [ticks[2], OTHER_ENTRY],
        [OTHER_ENTRY],
        ticks[3:],
        [none],
    ]
    makers = [decoded, packed, packed, decoded, decoded, packed]
    requests = [make(batch) for make, batch in zip(makers, batches, strict=True)]
    content = content_of(requests, frozenset({"Tick"}))
    whole = [entry for batch in batches for entry in batch]
    assert content == content_of([decoded(whole)], frozenset({"Tick"}))
    assert content is not None
    assert content.indices == [0, 2, 3, 6, 7, 8, 9]
    assert content.timestamp == 99


@pytest.mark.parametrize("make", [decoded, packed])
def test_without_a_block_command_there_is_no_content(
    make: Callable[[Sequence[Entry]], PreparedRequest],
) -> None:
    assert content_of([make([OTHER_ENTRY])], frozenset({"Tick"})) is None
    assert content_of([make([make_entry()])], EVERYTHING) is None
    assert content_of([], EVERYTHING) is None


def test_before_compiled_functions_are_loaded_entries_are_decoded() -> None:
    batch = [make_full_entry(), OTHER_ENTRY]
    expected = content_of([packed(batch)], EVERYTHING)
    bulk.use(None)
    try:
        request = packed(batch)
        assert content_of([request], EVERYTHING) == expected
        assert request.is_decoded
    finally:
        bulk.use(load(LANES), load(GATHERING))


def test_as_many_events_as_there_can_be_give_the_same() -> None:
    least = make_event(topic="t", event_data=b"", event_type="T")
    batch = [make_entry(command_type="A", events=[least] * 2000)]
    assert undecoded([packed(batch)], EVERYTHING) == content_of([decoded(batch)], EVERYTHING)


def test_entries_that_break_off_are_told() -> None:
    array = bytes(packed([make_full_entry()]).array)
    for end in range(1, len(array)):
        assert bulk.gather(memoryview(array[:end])) is None
    assert bulk.gather(memoryview(array + b"\xc0")) is None
    assert bulk.gather(memoryview(b"\xdd\xff\xff\xff\xff" + array[1:])) is None
    assert bulk.gather(memoryview(b"\x90")) is None


def test_more_events_than_there_is_room_for_are_told() -> None:
    empty_maps = b"\xdc\x03\xe8" + b"\x80" * 1000
    assert bulk.gather(memoryview(b"\x91\x81\xa6events" + empty_maps)) is None


@given(at=st.integers(0, 1000), byte=st.integers(0, 255))
def test_whatever_is_changed_in_entries_they_are_hashed_or_refused(at: int, byte: int) -> None:
    array = bytearray(packed([make_full_entry(), OTHER_ENTRY]).array)
    array[1 + at % (len(array) - 1)] = byte
    gathered = bulk.gather(memoryview(array))
    if gathered is not None:
        assert gathered.types()
        assert len(gathered.identities(b"", bytes(32), [0, 1])) == 64
        assert gathered.event_hashes(b"", EVENT_SHELL, SHELL_CUTS, [0, 1])
