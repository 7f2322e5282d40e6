"""Entries packed one after another: the inside of a MessagePack array, without its header.

A request body and a WAL record hold their entries in the same form, so what was checked in one is
put into the other as it is. Headers are those of the MessagePack specification, section "array".
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Raw

_FIX_ARRAY: Final = 0x90
_FIX_ARRAY_ITEMS: Final = 16
_ARRAY_16: Final = 0xDC
_ARRAY_32: Final = 0xDD
_RAW_LIST: Final = msgspec.msgpack.Decoder(list[Raw])


def array_header(count: int) -> bytes:
    """The header of an array of `count` items, in its shortest form."""
    if count < _FIX_ARRAY_ITEMS:
        return bytes((_FIX_ARRAY | count,))
    if count < 1 << 16:
        return bytes((_ARRAY_16,)) + count.to_bytes(2)
    return bytes((_ARRAY_32,)) + count.to_bytes(4)


def read_array_header(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int] | None:
    """How many items the array that begins at `at` announces, and where the first of them begins.

    None when no array begins there.
    """
    first = data[at] if at < len(data) else 0
    if _FIX_ARRAY <= first < _FIX_ARRAY + _FIX_ARRAY_ITEMS:
        return first - _FIX_ARRAY, at + 1
    size = {_ARRAY_16: 2, _ARRAY_32: 4}.get(first)
    if size is None:
        return None
    return int.from_bytes(data[at + 1 : at + 1 + size]), at + 1 + size


def len_of_header(array: bytes | bytearray | memoryview) -> int:
    """How long the header of an array is, in whichever of its forms."""
    header = read_array_header(array, 0)
    if header is None:
        raise ValueError("no array begins here")
    return header[1]


def pack_array(count: int, parts: Iterable[bytes | memoryview]) -> Raw:
    """The array of all packed entries, `count` of them in `parts`."""
    return Raw(b"".join((array_header(count), *parts)))


def split_array(array: bytes | memoryview) -> list[Raw]:
    """The packed entries of an array one by one; none is copied."""
    return _RAW_LIST.decode(array)
