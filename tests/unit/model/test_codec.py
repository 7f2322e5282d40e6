"""Request bodies to canonical bytes: one encoding whatever the format, and every refusal."""

import json
from contextlib import suppress
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidBody, InvalidEntries, TooManyEntries
from app.model.codec import MAX_FAULTS, PreparedRequest, RequestCodec, canonical_bytes, pack
from app.model.entry import Entry, Hash32
from tests.support.foreign_wal import plain
from tests.support.http_entries import json_entry, msgpack_entry
from tests.support.journal_entries import make_entry, make_full_entry
from tests.support.strategies import entries
from tests.support.wire_forms import to_json, to_msgpack

MAX_FIELD_BYTES = 4096
codec = RequestCodec(max_entries=200, max_field_bytes=MAX_FIELD_BYTES)
FORMATS = pytest.mark.parametrize("as_json", [True, False], ids=["json", "msgpack"])


def prepare_json(*bodies: Any) -> PreparedRequest:
    return codec.prepare(json.dumps({"entries": bodies}).encode(), json=True)


def prepare_msgpack(*bodies: Any) -> PreparedRequest:
    return codec.prepare(msgpack.packb({"entries": bodies}), json=False)


def body_of(as_json: bool, *bodies: Any) -> bytes:
    content = {"entries": bodies}
    packed: bytes = json.dumps(content).encode() if as_json else msgpack.packb(content)
    return packed


def contents(prepared: PreparedRequest) -> list[bytes]:
    """What tells the content of a request's entries: equal bytes for equal content."""
    return [canonical_bytes(entry) for entry in prepared.entries]


def sample(as_json: bool, **fields: Any) -> dict[str, Any]:
    return json_entry(**fields) if as_json else msgpack_entry(**fields)


# -- one canonical encoding -----------------------------------------------------------------------


@given(st.lists(entries(), min_size=1, max_size=3))
def test_any_valid_entry_gives_the_same_canonical_bytes_from_json_and_messagepack(
    valid: list[Entry],
) -> None:
    from_json = prepare_json(*map(to_json, valid))
    from_msgpack = codec.prepare(
        b"\x81\xa7entries" + bytes([0x90 + len(valid)]) + b"".join(map(to_msgpack, valid)),
        json=False,
    )
    for prepared in (from_json, from_msgpack):
        assert prepared.entries == valid
        assert prepared.keys == [entry.request_uuid.int for entry in valid]
        assert [msgpack.unpackb(one) for one in contents(prepared)] == [*map(plain, valid)]
        assert prepared.size_bytes == len(prepared.packed)
    assert from_json.packed == b"".join(contents(from_json)) == b"".join(contents(from_msgpack))


@given(entries())
def test_canonical_bytes_are_a_fixed_point(entry: Entry) -> None:
    packed = prepare_json(to_json(entry)).packed
    again = codec.prepare(b"\x81\xa7entries\x91" + packed, json=False)
    assert again.packed == packed
    assert contents(again) == [packed]


@given(entries(), entries())
def test_other_content_has_other_canonical_bytes(one: Entry, other: Entry) -> None:
    same = plain(one) == plain(other)
    assert (contents(prepare_json(to_json(one))) == contents(prepare_json(to_json(other)))) is same


SPELLED_OUT: dict[str, Any] = {
    "command_type": None,
    "response_data": None,
    "order_id": None,
    "pre_digest": {"next_order_id": 0, "next_trade_id": 0, "l2_seq": 0, "symbols": {}},
    "post_digest": {},
    "duration_ms": 0,
    "events": [],
    "outbox_appends": [],
    "fill_side_effects": [],
    "cash_withdrawal_side_effect": None,
    "balance_updates": [],
    "command_identity_hash": None,
    "rsm_state_digest": None,
}


@FORMATS
def test_defaults_that_are_spelled_out_are_the_same_content_as_left_out_ones(
    as_json: bool,
) -> None:
    short = sample(as_json, request_uuid=str(UUID(int=5)))
    long = {**short, **SPELLED_OUT}
    for order in (long, dict(reversed(long.items()))):
        body = body_of(as_json, short, order)
        one, other = contents(codec.prepare(body, json=as_json))
        assert one == other
        assert msgpack.unpackb(one).keys() == {"request_uuid", "received_ts_ms", "command_data"}


def test_a_value_next_to_the_default_is_other_content() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"response_data": ""},
        {"rsm_state_digest": ""},
        {"order_id": 0},
        {"duration_ms": 1},
        {"post_digest": {"l2_seq": 1}},
        {"pre_digest": {"symbols": {"": None}}},
    ]
    uuid = str(UUID(int=1))
    prepared = prepare_json(*(json_entry(request_uuid=uuid, **change) for change in changes))
    assert len(set(contents(prepared))) == len(changes)


def test_the_order_of_symbols_is_no_content() -> None:
    """A sender that repeats a request from a hash table may well give them in another order."""
    one = {"a": {"x": 1, "y": [{"p": 1, "q": 2}]}, "b": 2}
    other = {"b": 2, "a": {"y": [{"q": 2, "p": 1}], "x": 1}}
    uuid = str(UUID(int=1))
    prepared = prepare_json(
        *(json_entry(request_uuid=uuid, pre_digest={"symbols": each}) for each in (one, other))
    )
    one_content, other_content = contents(prepared)
    assert one_content == other_content


def test_uuids_are_text_in_json_and_text_or_bytes_in_messagepack() -> None:
    uuid = UUID("12345678-9abc-def0-1234-56789abcdef0")
    (in_json,) = prepare_json(json_entry(request_uuid=str(uuid))).keys
    assert in_json == uuid.int
    for value in (str(uuid), str(uuid).upper(), uuid.bytes):
        prepared = prepare_msgpack(msgpack_entry(request_uuid=value))
        assert prepared.keys == [uuid.int]
        assert msgpack.unpackb(contents(prepared)[0])["request_uuid"] == uuid.bytes


def test_hashes_and_addresses_are_hex_text_and_in_messagepack_bytes_too() -> None:
    identity = Hash32(bytes(range(32)))
    full = make_full_entry(command_identity_hash=identity)
    in_json = prepare_json(to_json(full))
    raw = msgpack.unpackb(to_msgpack(full))
    raw["command_identity_hash"] = "0x" + identity.hex().upper()
    raw["balance_updates"][0]["wallet"] = "0x" + raw["balance_updates"][0]["wallet"].hex()
    assert contents(prepare_msgpack(raw)) == contents(in_json)
    assert contents(prepare_msgpack(msgpack.unpackb(to_msgpack(full)))) == contents(in_json)


@FORMATS
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("12" * 32, "`0x` hex text of 32 bytes"),
        ("0x" + "zz" * 32, "is not hex text"),
        ("0x" + "12" * 31, "Expected 32 bytes, got 31"),
        ("0x" + "12" * 33, "Expected 32 bytes, got 33"),
        ("0x1", "is not hex text"),
        (5, "`0x` hex text of 32 bytes"),
        (["0x"], "`0x` hex text of 32 bytes"),
    ],
)
def test_what_is_no_hash_is_refused(as_json: bool, value: object, message: str) -> None:
    fault = only_fault(as_json, command_identity_hash=value)
    assert fault.path == "command_identity_hash"
    assert message in fault.message


def test_a_hash_of_the_wrong_length_in_bytes_is_refused() -> None:
    assert "got 20" in only_fault(False, command_identity_hash=b"\1" * 20).message


# -- faults ---------------------------------------------------------------------------------------


def faults_of(body: bytes, as_json: bool) -> InvalidEntries:
    with pytest.raises(InvalidEntries) as caught:
        codec.prepare(body, json=as_json)
    return caught.value


def only_fault(as_json: bool, **fields: Any) -> Any:
    """The one fault of the second of three entries, whose other two are right."""
    right = sample(as_json)
    error = faults_of(body_of(as_json, right, sample(as_json, **fields), right), as_json)
    (fault,) = error.faults
    assert fault.entry == 1
    assert fault.message in str(error)
    assert f"entry 1, {fault.path}" in str(error) or not fault.path
    return fault


INT = "Expected `int`"
EVENT = {"event_topic": "t", "event_data": "", "event_type": "A"}
ADDRESS = "0x" + "11" * 20
WITHDRAWAL = {
    "wallet": ADDRESS,
    "request_id": "r",
    "amount": "1",
    "balance_after": "1",
    "timestamp_ms": 1,
}
UPDATE = {
    "balance_update_seq": 0,
    "wallet": ADDRESS,
    "delta": "1",
    "balance_after": "1",
    "reason": "R",
    "timestamp_ms": 1,
}
OUTBOX = {
    "directive_id": "d",
    "action_key": "a",
    "wallet": ADDRESS,
    "account": ADDRESS,
    "signer": ADDRESS,
    "nonce": 0,
    "idempotency_key": "i",
    "payload": "",
    "created_at_ms": 1,
}
FILL = {
    "event_idx": 0,
    "trade_id": 0,
    "taker_ledger_delta": "0",
    "maker_ledger_delta": "0",
    "taker_premium_delta": "0",
    "maker_premium_delta": "0",
}


def withdrawal(**fields: Any) -> dict[str, Any]:
    return {"cash_withdrawal_side_effect": {**WITHDRAWAL, **fields}}


def update(**fields: Any) -> dict[str, Any]:
    return {"balance_updates": [{**UPDATE, **fields}]}


TYPED: list[tuple[dict[str, Any], str, str]] = [
    ({"request_uuid": "no uuid"}, "request_uuid", "Invalid UUID"),
    ({"request_uuid": None}, "request_uuid", "Expected `uuid`"),
    ({"received_ts_ms": -1}, "received_ts_ms", ">= 0"),
    ({"received_ts_ms": 2**63}, "received_ts_ms", "<= 9223372036854775807"),
    ({"received_ts_ms": 2**64}, "received_ts_ms", ""),
    ({"received_ts_ms": "1"}, "received_ts_ms", INT),
    ({"received_ts_ms": 1.5}, "received_ts_ms", INT),
    ({"received_ts_ms": True}, "received_ts_ms", INT),
    ({"received_ts_ms": None}, "received_ts_ms", INT),
    ({"command_type": ""}, "command_type", "regex"),
    ({"command_type": "1A"}, "command_type", "regex"),
    ({"command_type": "A" * 65}, "command_type", "length <= 64"),
    ({"command_type": "A-B"}, "command_type", "regex"),
    ({"command_type": "A\n"}, "command_type", "regex"),
    ({"command_type": "É"}, "command_type", "regex"),
    ({"command_data": ""}, "command_data", "length >= 1"),
    ({"command_data": None}, "command_data", "Expected `bytes`"),
    ({"order_id": -(2**63) - 1}, "order_id", ""),
    ({"order_id": 2**63}, "order_id", "<= 9223372036854775807"),
    ({"duration_ms": -1}, "duration_ms", ">= 0"),
    ({"pre_digest": {"l2_seq": -1}}, "pre_digest.l2_seq", ">= 0"),
    ({"post_digest": {"next_trade_id": 2**63}}, "post_digest.next_trade_id", "<="),
    ({"post_digest": {"more": 1}}, "post_digest", "unknown field `more`"),
    ({"pre_digest": None}, "pre_digest", "Expected `object`"),
    ({"pre_digest": {"symbols": []}}, "pre_digest.symbols", "Expected `object`"),
    ({"events": None}, "events", "Expected `array`"),
    ({"events": [EVENT, {**EVENT, "event_topic": ""}]}, "events[1].event_topic", "length >= 1"),
    ({"events": [{**EVENT, "event_topic": "t" * 256}]}, "events[0].event_topic", "length <= 255"),
    ({"events": [{**EVENT, "event_key": "t" * 1025}]}, "events[0].event_key", "length <= 1024"),
    ({"events": [{**EVENT, "event_type": None}]}, "events[0].event_type", "Expected `str`"),
    ({"events": [{**EVENT, "event_type": "a b"}]}, "events[0].event_type", "regex"),
    ({"events": [{**EVENT, "l2_sequence": 2**63}]}, "events[0].l2_sequence", "<="),
    ({"events": [{"event_topic": "t", "event_type": "A"}]}, "events[0]", "field `event_data`"),
    ({"outbox_appends": [{**OUTBOX, "nonce": -1}]}, "outbox_appends[0].nonce", ">= 0"),
    ({"outbox_appends": [{**OUTBOX, "wallet": "0x12"}]}, "outbox_appends[0].wallet", "20 bytes"),
    ({"outbox_appends": [{**OUTBOX, "status": "x"}]}, "outbox_appends[0]", "unknown field"),
    ({"outbox_appends": [{**OUTBOX, "nonce": 1.5}]}, "outbox_appends[0].nonce", INT),
    ({"fill_side_effects": [{**FILL, "event_idx": -1}]}, "fill_side_effects[0].event_idx", ">= 0"),
    ({"fill_side_effects": [{**FILL, "trade_id": -1}]}, "fill_side_effects[0].trade_id", ">= 0"),
    (withdrawal(wallet=None), "cash_withdrawal_side_effect.wallet", "hex"),
    (withdrawal(timestamp_ms=2**63), "cash_withdrawal_side_effect.timestamp_ms", "<="),
    (update(reason="no type"), "balance_updates[0].reason", "regex"),
    (update(source_command_id=2**63), "balance_updates[0].source_command_id", "<="),
    (update(balance_update_seq=-1), "balance_updates[0].balance_update_seq", ">= 0"),
    ({"command_id": 1}, "", "unknown field `command_id`"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "path", "message"), TYPED, ids=lambda value: str(value)[:60])
def test_what_breaks_a_type_is_refused_with_its_path(
    fields: dict[str, Any], path: str, message: str
) -> None:
    fault = only_fault(True, **fields)
    assert (fault.path, message in fault.message) == (path, True), fault


NO_DECIMALS = [
    *["", "-", "+1", "1e3", "1E3", "NaN", "Infinity", ".5", "5.", "1,5", " 1", "1\n", "٣", "0x1"],
    *["1" * 29, "0." + "1" * 29],
]


@pytest.mark.parametrize("text", NO_DECIMALS)
def test_what_is_no_decimal_in_plain_notation_is_refused(text: str) -> None:
    fault = only_fault(True, cash_withdrawal_side_effect={**WITHDRAWAL, "amount": text})
    assert fault.path == "cash_withdrawal_side_effect.amount"


@pytest.mark.parametrize("number", [1, 1.5, None])
@FORMATS
def test_a_decimal_that_is_a_number_is_refused(as_json: bool, number: object) -> None:
    fault = only_fault(as_json, cash_withdrawal_side_effect={**WITHDRAWAL, "amount": number})
    assert fault.path == "cash_withdrawal_side_effect.amount"
    assert "Expected `str`" in fault.message


@pytest.mark.parametrize("name", ["request_uuid", "received_ts_ms", "command_data"])
@FORMATS
def test_a_missing_required_field_is_named(as_json: bool, name: str) -> None:
    entry = sample(as_json)
    del entry[name]
    (fault,) = faults_of(body_of(as_json, entry), as_json).faults
    assert f"required field `{name}`" in fault.message


def test_text_where_bytes_belong_is_base64_in_json_and_refused_in_messagepack() -> None:
    assert only_fault(True, command_data="not base64!").path == "command_data"
    assert only_fault(True, response_data="a").path == "response_data"
    assert "Expected `bytes`" in only_fault(False, command_data=5).message


def test_every_entry_with_a_fault_is_listed_with_its_first() -> None:
    wrong_type, wrong_rule = {"received_ts_ms": "x"}, {"events": [{**EVENT, "event_key": "\0"}]}
    bodies: list[dict[str, Any]] = [{}, wrong_type, {}, wrong_rule, {**wrong_type, **wrong_rule}]
    error = faults_of(body_of(True, *(json_entry(**body) for body in bodies)), True)
    assert [(fault.entry, fault.path) for fault in error.faults] == [
        (1, "received_ts_ms"),
        (3, "events[0].event_key"),
        (4, "received_ts_ms"),
    ]
    assert "(and 2 more)" in str(error)


@pytest.mark.parametrize(
    "fields", [{"received_ts_ms": "x"}, {"events": [{**EVENT, "event_key": "\0"}]}]
)
def test_at_most_100_faults_are_listed(fields: dict[str, Any]) -> None:
    error = faults_of(body_of(True, *(json_entry(**fields) for _ in range(150))), True)
    assert [fault.entry for fault in error.faults] == list(range(MAX_FAULTS))


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"entries": []}, "length >= 1"),
        ({"entries": {}}, "Expected `array`"),
        ({"entries": None}, "Expected `array`"),
        ({}, "required field `entries`"),
        ({"entries": [1]}, "Expected `object`"),
        ({"entries": [{}], "more": 1}, "unknown field `more`"),
        ([], "Expected `object`"),
        (5, "Expected `object`"),
        (None, "Expected `object`"),
    ],
    ids=str,
)
def test_a_body_that_is_no_request_is_refused(as_json: bool, content: object, message: str) -> None:
    body = json.dumps(content).encode() if as_json else msgpack.packb(content)
    assert message in str(faults_of(body, as_json))


@FORMATS
@pytest.mark.parametrize("valid", [True, False])
def test_too_many_entries_are_refused_whether_they_are_valid_or_not(
    as_json: bool, valid: bool
) -> None:
    one = sample(as_json) if valid else {"nothing": 1}
    with pytest.raises(TooManyEntries, match="201 entries; at most 200 are allowed"):
        codec.prepare(body_of(as_json, *[one] * 201), json=as_json)
    if valid:
        assert len(codec.prepare(body_of(as_json, *[one] * 200), json=as_json).entries) == 200


# -- not decodable --------------------------------------------------------------------------------


def refused_body(body: bytes, as_json: bool) -> str:
    with pytest.raises(InvalidBody) as caught:
        codec.prepare(body, json=as_json)
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"entries":[',
        b"\xff",
        b"not json",
        b'{"entries":[{}]} x',
        b'{"entries":[{"order_id":01}]}',
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert "not valid JSON" in refused_body(body, True)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x81\xa7entries", b"\x81\xa7entries\x91", b"\x81\xa7entries\x91\x80\x80"],
)
def test_what_is_not_messagepack_is_refused(body: bytes) -> None:
    assert "not valid MessagePack" in refused_body(body, False)


@FORMATS
@pytest.mark.parametrize(
    "first", [{}, {"received_ts_ms": "wrong"}], ids=["alone", "behind another"]
)
def test_text_that_is_not_utf8_is_refused_also_behind_another_fault(
    as_json: bool, first: dict[str, Any]
) -> None:
    body = body_of(as_json, sample(as_json, **first), sample(as_json, command_type="zzz"))
    assert "utf-8" in refused_body(body.replace(b"zzz", b"z\xffz"), as_json)


@FORMATS
@pytest.mark.parametrize(
    "first", [{}, {"received_ts_ms": "wrong"}], ids=["alone", "behind another"]
)
@pytest.mark.parametrize("depth", [2_000, 200_000])
def test_what_is_nested_too_deeply_is_refused_also_behind_another_fault(
    as_json: bool, first: dict[str, Any], depth: int
) -> None:
    nested = sample(as_json, pre_digest={"symbols": {"a": "zzz"}})
    body = body_of(as_json, sample(as_json, **first), nested)
    if as_json:
        body = body.replace(b'"zzz"', b"[" * depth + b"]" * depth)
    else:
        body = body.replace(b"\xa3zzz", b"\x91" * depth + b"\x90")
    assert refused_body(body, as_json) == "the body is nested too deeply"


def test_a_lone_surrogate_is_refused_wherever_it_is() -> None:
    for fields in ({"command_type": "zzz"}, {"pre_digest": {"symbols": {"zzz": "zzz"}}}):
        body = body_of(True, json_entry(**fields)).replace(b"zzz", b"\\ud800")
        with pytest.raises((InvalidBody, InvalidEntries)):
            codec.prepare(body, json=True)


@given(st.binary(max_size=200), st.booleans())
def test_any_other_bytes_are_refused_by_an_error_of_ours(body: bytes, as_json: bool) -> None:
    with pytest.raises((InvalidBody, InvalidEntries)):
        codec.prepare(body, json=as_json)


@given(st.lists(entries(), min_size=1, max_size=2), st.booleans(), st.data())
def test_any_damage_to_a_request_is_refused_by_an_error_of_ours_or_leaves_a_valid_request(
    valid: list[Entry], as_json: bool, data: st.DataObject
) -> None:
    if as_json:
        body = json.dumps({"entries": [to_json(entry) for entry in valid]}).encode()
    else:
        body = b"\x81\xa7entries" + bytes([0x90 + len(valid)])
        body += b"".join(to_msgpack(entry) for entry in valid)
    at = data.draw(st.integers(0, len(body) - 1))
    patch = data.draw(st.binary(max_size=4))
    damaged = body[:at] + patch + body[at + data.draw(st.integers(0, 4)) :]
    with suppress(InvalidBody, InvalidEntries):
        assert codec.prepare(damaged, json=as_json).entries


def test_an_entry_that_was_made_in_code_has_the_same_canonical_bytes() -> None:
    entry = make_entry()
    assert prepare_json(to_json(entry)).packed == canonical_bytes(entry) == pack([entry])


@FORMATS
def test_a_body_is_emptied_where_its_entries_are_encoded_anew(as_json: bool) -> None:
    body = bytearray(body_of(as_json, sample(as_json)))
    before = bytes(body)
    prepared = codec.prepare(body, json=as_json)
    assert bytes(body) == (b"" if as_json else before)
    assert prepared.packed == codec.prepare(before, json=as_json).packed
