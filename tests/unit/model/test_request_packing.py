"""What of a request body goes into a WAL record: its entries as they were sent, if possible."""

import json
from typing import Any

import msgpack
import pytest

from app.errors import TooManyEntries
from app.model.codec import RequestCodec, canonical_bytes
from tests.support.foreign_wal import plain
from tests.support.http_entries import json_entry, msgpack_entry

codec = RequestCodec(max_entries=200, max_field_bytes=4096)


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "msgpack"])
@pytest.mark.parametrize("count", [1, 15, 16, 200])
def test_the_entries_of_a_request_are_packed_one_after_another(as_json: bool, count: int) -> None:
    samples: list[Any] = [json_entry() if as_json else msgpack_entry() for _ in range(count)]
    content = {"entries": samples}
    body = json.dumps(content).encode() if as_json else msgpack.packb(content)
    prepared = codec.prepare(body, json=as_json)
    unpacker = msgpack.Unpacker()
    unpacker.feed(prepared.packed)
    assert list(unpacker) == [plain(entry) for entry in prepared.entries]
    assert len(prepared.entries) == count


@pytest.mark.parametrize(
    "head",
    [b"\xde\x00\x01\xa7entries", b"\x81\xd9\x07entries", b"\xdf\x00\x00\x00\x01\xa7entries"],
    ids=["map 16", "str 8", "map 32"],
)
def test_a_body_that_is_spelled_at_length_packs_the_same_entries(head: bytes) -> None:
    entry = msgpack.packb(msgpack_entry())
    prepared = codec.prepare(head + b"\xdd\x00\x00\x00\x01" + entry, json=False)
    assert prepared.packed == canonical_bytes(prepared.entries[0])


def test_an_array_that_is_spelled_at_length_is_packed_as_it_was_sent() -> None:
    entry = msgpack.packb({**msgpack_entry(), "order_id": None})
    for header in (b"\x91", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"):
        assert codec.prepare(b"\x81\xa7entries" + header + entry, json=False).packed == entry


def test_an_array_that_announces_too_many_entries_is_refused_before_they_are_decoded() -> None:
    with pytest.raises(TooManyEntries, match="4294967295 entries; at most 200"):
        codec.prepare(b"\x81\xa7entries\xdd\xff\xff\xff\xff", json=False)
