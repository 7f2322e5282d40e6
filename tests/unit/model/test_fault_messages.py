"""What a fault says stays short, whatever it repeats of a body."""

import json
from typing import Any

import msgpack
import pytest

from app.errors import InvalidEntries
from app.model.codec import RequestCodec
from tests.support.http_entries import json_entry, msgpack_entry

codec = RequestCodec(max_entries=200, max_field_bytes=4096)
LONG = "begin" + " - at `$\n" * 10_000 + "end"
FORMATS = pytest.mark.parametrize("as_json", [True, False], ids=["json", "msgpack"])


def refused(as_json: bool, content: Any) -> InvalidEntries:
    body = json.dumps(content).encode() if as_json else msgpack.packb(content)
    with pytest.raises(InvalidEntries) as refusal:
        codec.prepare(body, json=as_json)
    return refusal.value


@FORMATS
def test_of_a_field_with_a_long_name_beginning_and_end_are_told_and_where(as_json: bool) -> None:
    sample = json_entry if as_json else msgpack_entry
    error = refused(as_json, {"entries": [sample(), sample(events=[{LONG: 1}])]})
    (fault,) = error.faults
    assert (fault.entry, fault.path) == (1, "events[0]")
    assert fault.message.startswith("Object contains unknown field `begin")
    assert fault.message.endswith("end`")
    assert len(str(error)) < 1000


@FORMATS
def test_so_it_is_with_a_key_of_the_body(as_json: bool) -> None:
    assert len(str(refused(as_json, {LONG: 1}))) < 1000


def test_a_key_of_many_bytes_is_not_shown() -> None:
    symbols = {"a": {b"\0" * 10_000: 1}}
    (fault,) = refused(False, {"entries": [msgpack_entry(pre_digest={"symbols": symbols})]}).faults
    assert fault.message == "key of bytes or a list is not text"


@pytest.mark.parametrize("value", ["0x" + "11" * 10_000, "z" * 10_000, ["z" * 10_000]])
def test_a_long_hash_is_shown_in_part(value: Any) -> None:
    (fault,) = refused(True, {"entries": [json_entry(command_identity_hash=value)]}).faults
    assert fault.message.startswith("Expected `0x` hex text of 32 bytes, got ")
    assert len(fault.message) < 200
