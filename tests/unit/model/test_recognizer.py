"""What is recognized without being decoded is what the decoder takes: the same entries, no more."""

from collections.abc import Iterator, Sequence
from json import dumps
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import RequestError
from app.model.codec import RequestCodec, canonical_bytes, pack
from app.model.entry import Entry
from app.model.packing import array_header, len_of_header
from app.model.recognizer import LEAST_BYTES, Recognized, Recognizer
from app.service.compiled import GRAMMAR, TRANSCRIPTION, load
from bench.entries import bodies
from tests.support.http_entries import json_entry, msgpack_entry
from tests.support.journal_entries import make_entry, make_full_entry
from tests.support.odd_values import ODD_JSON, ODD_MSGPACK
from tests.support.strategies import entries
from tests.support.wire_forms import to_json, to_msgpack

OPENING: Final = b"\x81\xa7entries"
MARK: Final = "here it goes"
MAX_FIELD_BYTES: Final = 1024
WATCHED: Final = ("Tick", "TickSnapshot")
plain_codec: Final = RequestCodec(max_entries=2000, max_field_bytes=MAX_FIELD_BYTES)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    pytest.importorskip("numba", reason="numba has no wheel here")
    made = Recognizer(MAX_FIELD_BYTES, WATCHED)
    made.use(load(GRAMMAR))
    return made


def as_json(*bodies: Any) -> bytes:
    return dumps({"entries": bodies}).encode()


def as_array(body: bytes) -> memoryview:
    return memoryview(body)[len(OPENING) :]


def agreed(recognizer: Recognizer, body: bytes, *, json: bool) -> Recognized | None:
    """What is recognized of a body, after comparing it with what the decoder says."""
    array = recognizer.transcribe(body) if json else as_array(body)
    recognized = None if array is None else recognizer.recognize(array)
    if array is None or recognized is None:
        return None
    try:
        expected = plain_codec.prepare(body, json=json)
    except RequestError as error:
        raise AssertionError(f"{error}, but it is recognized: {body!r}") from error
    assert recognized.keys == expected.keys
    found = plain_codec.prepare(OPENING + bytes(array), json=False)
    contents = [canonical_bytes(entry) for entry in expected.entries]
    if json:
        # Defaults are left out, and what has a form of its own has it.
        assert msgpack.unpackb(bytes(array)) == [msgpack.unpackb(content) for content in contents]
    assert [canonical_bytes(entry) for entry in found.entries] == contents
    assert recognized.is_watched == any(each.command_type in WATCHED for each in expected.entries)
    return recognized


def packed_body(*entries: Entry) -> bytes:
    return OPENING + array_header(len(entries)) + b"".join(map(to_msgpack, entries))


# -- what is recognized ---------------------------------------------------------------------------


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
@pytest.mark.parametrize("count", [1, 15, 16, 1000])
def test_the_entries_of_the_benchmark_are_recognized(
    recognizer: Recognizer, count: int, *, json: bool
) -> None:
    (body,) = bodies(1, count, json=json)
    assert agreed(recognizer, body, json=json)


def test_an_entry_with_everything_is_recognized_in_every_form(recognizer: Recognizer) -> None:
    entry = make_full_entry()
    assert agreed(recognizer, packed_body(entry), json=False)
    assert agreed(recognizer, OPENING + b"\x91" + pack([entry]), json=False)
    assert agreed(recognizer, as_json(to_json(entry)), json=True)
    in_text = OPENING + b"\x91" + msgpack.packb(to_json(entry) | {"command_data": b"1"})
    assert recognizer.recognize(as_array(in_text)) is None, "bytes in base64 are JSON's alone"


COMMON_FORMS: Final[list[dict[str, Any]]] = [
    {"command_type": None, "response_data": None, "order_id": None, "events": []},
    {"command_type": "A", "duration_ms": 2**63 - 1, "order_id": -(2**63) + 1},
    {"order_id": 0}, {"order_id": -1}, {"order_id": -33}, {"order_id": -129}, {"order_id": 65536},
    {"pre_digest": {}, "post_digest": {"symbols": {}}},
    {"pre_digest": {"symbols": {"a": [None, True, False, [], {}, "", 1, -1, 2**40, -(2**40)]}}},
    {"post_digest": {"symbols": {str(number): number for number in range(300)}}},
    {"post_digest": {"symbols": {"list": list(range(70_000))}}},
    {"request_uuid": "07458D0D-8d62-4028-ae18-0a7386c84eaa"},
    {"cash_withdrawal_side_effect": None, "outbox_appends": []},
]  # fmt: skip


@pytest.mark.parametrize("fields", COMMON_FORMS, ids=lambda fields: next(iter(fields)))
@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
def test_common_forms_are_recognized(
    recognizer: Recognizer, fields: dict[str, Any], *, json: bool
) -> None:
    entry = json_entry(**fields) if json else msgpack_entry(**fields)
    body = as_json(entry, entry) if json else msgpack.packb({"entries": [entry, entry]})
    assert agreed(recognizer, body, json=json)


@pytest.mark.parametrize("entry", [make_entry(), make_full_entry()], ids=["least", "full"])
def test_a_record_is_the_same_whether_json_was_transcribed_or_decoded(
    recognizer: Recognizer, entry: Entry
) -> None:
    body = as_json(*[to_json(entry)] * 17)
    array = recognizer.transcribe(body)
    assert array is not None
    assert bytes(array) == bytes(plain_codec.prepare(body, json=True).array)


def test_space_between_the_parts_of_json_is_none_of_it(recognizer: Recognizer) -> None:
    spaced = as_json(to_json(make_full_entry()))
    for sign in b'{}[]:,"':
        assert bytes([sign]) in spaced
    for mark in "{}[],":
        spaced = spaced.replace(mark.encode(), f" \r\n\t{mark} ".encode())
    assert agreed(recognizer, spaced, json=True)


def test_defaults_that_are_spelled_out_in_json_are_left_out(recognizer: Recognizer) -> None:
    short = json_entry()
    spelled_out = to_json(make_entry()) | {"pre_digest": {"l2_seq": 0, "symbols": {}}}
    array = recognizer.transcribe(as_json(short, spelled_out | short))
    assert array is not None
    one, other = msgpack.unpackb(bytes(array))
    assert one == other
    assert one.keys() == short.keys()


@pytest.mark.parametrize("field", ['"order_id": 5, "order_id": null', '"order_id": 0'])
def test_what_only_looks_like_a_default_is_kept(recognizer: Recognizer, field: str) -> None:
    body = as_json(json_entry()).replace(b'"command_data"', f'{field}, "command_data"'.encode())
    recognized = agreed(recognizer, body, json=True)
    assert bool(recognized) is ("null" not in field)


@pytest.mark.parametrize(
    ("watched", "is_watched"),
    [
        (["*"], True),
        (["Tick"], True),
        (["Tic", "Ticks"], False),
        ([], False),
        (["A", "Tick"], True),
    ],
)
def test_watched_types_are_noticed(watched: list[str], *, is_watched: bool) -> None:
    pytest.importorskip("numba", reason="numba has no wheel here")
    recognizer = Recognizer(MAX_FIELD_BYTES, watched)
    recognizer.use(load(GRAMMAR))
    others = [make_entry(), make_entry(command_type="B")]
    body = packed_body(*others, make_entry(command_type="Tick"), *others)
    assert recognizer.recognize(as_array(body)) == (
        [*plain_codec.prepare(body, json=False).keys],
        is_watched,
    )
    none = recognizer.recognize(as_array(packed_body(make_entry(), make_entry())))
    assert none is not None
    assert not none.is_watched


# -- what is not ----------------------------------------------------------------------------------


@given(st.lists(entries(), min_size=1, max_size=4))
def test_any_valid_entries_are_recognized_as_what_they_are_if_they_are(
    recognizer: Recognizer, valid: list[Entry]
) -> None:
    agreed(recognizer, packed_body(*valid), json=False)
    agreed(recognizer, as_json(*map(to_json, valid)), json=True)


class Edit(NamedTuple):
    """At a place, which is taken modulo the length, other bytes instead of `cut` of them."""

    at: int
    cut: int
    put: bytes


edits = st.lists(
    st.builds(
        Edit,
        st.integers(0, 1 << 16),
        st.sampled_from([0, 1, 1, 1, 2, 8, 40]),
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from([b"\xc0", b"\x00", b"\xff" * 8, b"\xdf\xff\xff\xff\xff", b"\x80"]),
            st.sampled_from([b'"', b"\\", b",", b"null", b"0", b"-", b"=", b"{", b"]", b" "]),
        ),
    ),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, edits: Sequence[Edit], start: int) -> bytes:
    for edit in edits:
        at = start + edit.at % (len(data) - start)
        data = data[:at] + edit.put + data[at + edit.cut :]
    return data


@settings(max_examples=300)
@given(edits=edits, json=st.booleans())
def test_what_is_changed_anywhere_is_recognized_only_if_it_is_valid(
    recognizer: Recognizer, edits: list[Edit], *, json: bool
) -> None:
    entries = [make_full_entry(), make_entry(command_type="Tick")]
    body = as_json(*map(to_json, entries)) if json else packed_body(*entries)
    agreed(recognizer, edited(body, edits, 0 if json else len(OPENING)), json=json)


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
def test_what_ends_early_or_late_is_not_recognized(recognizer: Recognizer, *, json: bool) -> None:
    entry = make_full_entry()
    body = as_json(to_json(entry)) if json else packed_body(entry)
    for length in range(0 if json else len(OPENING), len(body)):
        assert agreed(recognizer, body[:length], json=json) is None
    assert agreed(recognizer, body + b"\0", json=json) is None


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in the parts of an entry where a value is."""
    items: Any = ()
    if path[-1:] != ("symbols",) and isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def with_mark(value: Any, path: tuple[str | int, ...], mark: str) -> Any:
    """A copy with a mark in one place."""
    if not path:
        return mark
    items: Any = dict(value) if isinstance(value, dict) else list(value)
    inner = value.get(path[0]) if isinstance(value, dict) else value[path[0]]
    items[path[0]] = with_mark(inner, path[1:], mark)
    return items


@pytest.mark.parametrize("path", list(places(to_json(make_full_entry()))), ids=str)
def test_odd_values_are_recognized_only_where_they_are_valid(
    recognizer: Recognizer, path: tuple[str | int, ...]
) -> None:
    in_json = to_json(make_full_entry())
    body = as_json(with_mark(in_json, path, MARK))
    for odd in ODD_JSON:
        agreed(recognizer, body.replace(dumps(MARK).encode(), odd.encode()), json=True)
    entry = msgpack.unpackb(to_msgpack(make_full_entry()))
    body = OPENING + b"\x91" + msgpack.packb(with_mark(entry, path, MARK))
    found = [
        agreed(recognizer, body.replace(msgpack.packb(MARK), odd), json=False)
        for odd in ODD_MSGPACK
    ]
    # No odd value is a part, and fills need their events.
    assert any(found) or isinstance(path[-1], int) or path == ("events",)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_fills_point_to_events_that_are_there(recognizer: Recognizer, index: int) -> None:
    entry = to_json(make_full_entry())
    entry["fill_side_effects"][1]["event_idx"] = index
    for fields in (entry, dict(reversed(entry.items()))):
        recognized = agreed(recognizer, as_json(fields), json=True)
        assert bool(recognized) is (index < 2)
    del entry["events"]
    assert not agreed(recognizer, as_json(entry), json=True)


@pytest.mark.parametrize("name", ["request_uuid", "received_ts_ms", "command_data", "event_data"])
def test_what_lacks_a_field_or_has_one_twice_is_not_recognized(
    recognizer: Recognizer, name: str
) -> None:
    text = dumps({"entries": [to_json(make_full_entry())]})
    start = text.index(f'"{name}"')
    end = text.index('", "' if text[start:].split(": ")[1].startswith('"') else ", ", start) + 1
    end = text.index(" ", end) + 1
    field = text[start:end]
    assert agreed(recognizer, text.encode(), json=True)
    assert not agreed(recognizer, text.replace(field, "", 1).encode(), json=True)
    assert not agreed(recognizer, text.replace(field, field * 2, 1).encode(), json=True)
    assert not agreed(recognizer, text.replace(name, f"{name[:-1]}_", 1).encode(), json=True)


# -- where it reads and writes --------------------------------------------------------------------


def texts_in_lists(size: int, items: int, lists: int) -> bytes:
    """A body of nothing but lists of texts, which need no comma behind the last one."""
    texts = [["x" * size] * items] * lists
    return as_json({"pre_digest": {"symbols": {"": texts}}}).replace(b" ", b"")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 257, 65_535, 65_536])
@pytest.mark.parametrize("items", [0, 1, 15, 16, 17])
def test_there_is_room_for_the_longest_forms(size: int, items: int) -> None:
    assert_written_within_room(texts_in_lists(size, items, 1 + 200_000 // (1 + size * items)))


@pytest.mark.parametrize(
    "items", [[0] * 70_000, [[]] * 70_000, dict.fromkeys(map(str, range(70_000)), 0)]
)
def test_there_is_room_for_many_items(items: Any) -> None:
    assert_written_within_room(as_json({"pre_digest": {"symbols": {"": items}}}).replace(b" ", b""))


@given(st.one_of(st.binary(max_size=60), edits), st.integers(0, 40))
def test_nothing_is_written_beyond_the_room_there_is(
    change: bytes | list[Edit], number: int
) -> None:
    body = as_json({"pre_digest": {"symbols": {"a": [[]] * number}}}, to_json(make_full_entry()))
    assert_written_within_room(change if isinstance(change, bytes) else edited(body, change, 0))


def test_where_there_is_no_room_nothing_is_written_beyond_it() -> None:
    pytest.importorskip("numba", reason="numba has no wheel here")
    symbols = {"": ["x" * 300] * 20, "a": {str(number): [number] for number in range(20)}}
    body = as_json(to_json(make_full_entry()) | {"pre_digest": {"symbols": symbols}})
    data = np.frombuffer(body, np.uint8)
    table = load(GRAMMAR).Grammar(MAX_FIELD_BYTES, ()).table
    ends = set()
    for room in range(len(body)):
        whole = np.full(room + 1024, 0xA5, np.uint8)
        count, end = load(TRANSCRIPTION).transcribe(data, table, whole[:room], 0)
        assert (whole[room:] == 0xA5).all()
        assert count == -1 or end <= room
        ends.add(count)
    assert ends == {-1, 1}


def assert_written_within_room(text: bytes) -> None:
    """Compiled code does not look where it writes: nothing of what lies behind may change."""
    pytest.importorskip("numba", reason="numba has no wheel here")
    compiled = load(TRANSCRIPTION)
    room = compiled.room_for(len(text))
    out = np.full(room + 4096, 0xA5, np.uint8)
    data = np.frombuffer(text, np.uint8)
    _, end = compiled.transcribe(data, load(GRAMMAR).Grammar(MAX_FIELD_BYTES, ()).table, out, 0)
    assert end <= room
    assert (out[room:] == 0xA5).all()


# -- in the codec ---------------------------------------------------------------------------------


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
def test_the_codec_prepares_recognized_bodies_undecoded(
    recognizer: Recognizer, *, json: bool
) -> None:
    codec = RequestCodec(100, MAX_FIELD_BYTES, recognizer)
    (body,) = bodies(1, 100, json=json)
    assert len(body) >= LEAST_BYTES
    expected = plain_codec.prepare(body, json=json)
    given_body = bytearray(body)
    prepared = codec.prepare(given_body, json=json)
    assert not prepared.may_make_block
    assert prepared.keys == expected.keys
    assert (
        prepared.size_bytes
        == len(prepared.packed)
        == len(prepared.array) - len_of_header(prepared.array)
    )
    assert prepared.entries == expected.entries
    assert bool(given_body) is not json, "JSON is given up, MessagePack goes into the log as it is"
    assert expected.may_make_block, "nobody has looked"


@pytest.mark.parametrize("json", [False, True], ids=["msgpack", "json"])
def test_the_codec_says_what_is_wrong_with_what_is_not_recognized(
    recognizer: Recognizer, *, json: bool
) -> None:
    few = RequestCodec(99, MAX_FIELD_BYTES, recognizer)
    (body,) = bodies(1, 100, json=json)
    with pytest.raises(RequestError, match="100 entries; at most 99 are allowed"):
        few.prepare(body, json=json)
    codec = RequestCodec(100, MAX_FIELD_BYTES, recognizer)
    with pytest.raises(RequestError, match="OrderUpdat!"):
        codec.prepare(body.replace(b"OrderUpdate", b"OrderUpdat!"), json=json)
