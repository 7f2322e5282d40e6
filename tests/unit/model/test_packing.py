"""Packed entries: headers as an independent library writes and reads them."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.model.packing import (
    array_header,
    len_of_header,
    pack_array,
    read_array_header,
    split_array,
)

COUNTS = [0, 1, 15, 16, 255, 256, 65_535, 65_536, 2**32 - 1]


@pytest.mark.parametrize("count", COUNTS)
def test_array_headers_are_the_shortest_ones(count: int) -> None:
    packer = msgpack.Packer()
    assert array_header(count) == packer.pack_array_header(count)
    data = b"x" + array_header(count)
    assert read_array_header(data, 1) == (count, len(data))


@pytest.mark.parametrize("data", [b"", b"\x81\x01\x02", b"\xc4\x01a", b"\xc0", b"\x01"])
def test_where_no_array_begins_none_is_read(data: bytes) -> None:
    assert read_array_header(data, 0) is None


@given(st.lists(st.lists(st.binary(max_size=5), max_size=20), max_size=5))
def test_packed_parts_make_one_array_and_come_apart_again(parts: list[list[bytes]]) -> None:
    items = [item for part in parts for item in part]
    packed = [b"".join(map(msgpack.packb, part)) for part in parts]
    array = bytes(pack_array(len(items), packed))
    assert msgpack.unpackb(array) == items
    assert array[len_of_header(array) :] == b"".join(packed)
    assert [msgpack.unpackb(each) for each in split_array(array)] == items
