"""What a request body would cost once it is decoded, told before it is.

One byte of a body can become a hundred of memory, and take a microsecond to check: an empty map is
one byte in MessagePack, and an object of 64 bytes in a list when decoded. `check_weight` refuses
what would take more than about twice `MAX_BODY_BYTES`. Short bodies, as most are, could not, and
pass unseen; of the others, those whose `symbols` are short pass after a glance.
"""

import re
from typing import Final

import msgpack
import msgspec
from msgspec import Raw, Struct

from app.errors import InvalidEntries, TooManyEntries, TooManyValues

# Each divides MAX_BODY_BYTES; what is no larger is light. A byte takes a hundred at most.
_LIGHT_BODY: Final = 32
_LIGHT_ENTRY: Final = 64
_LARGE_BODY: Final = 4
# Likewise for how many values there may be, keys included: in all `symbols`, in an entry that is
# not light, and in a JSON body. One takes 95 bytes at most, 30 to 50 in what is not `symbols`.
_SYMBOLS_VALUES: Final = 32
_ENTRY_VALUES: Final = 48
_JSON_VALUES: Final = 48
# The parts that an entry may hold many of: a key that each has, and what one takes with short text.
_PARTS: Final = (
    (b"event_topic", 200),
    (b"directive_id", 480),
    (b"taker_ledger_delta", 320),
    (b"balance_update_seq", 400),
)
# As much as a map header, the key `entries` and a list header take, in any spelling.
_OPENING_BYTES: Final = 24
_ARRAY_OF_MANY: Final = b"\xdd\xff\xff\xff\xff"


class _Digest(Struct, frozen=True, gc=False):
    symbols: Raw = Raw()


class _Digests(Struct, gc=False):
    """Of an entry, what may hold any number of values of any kind."""

    pre_digest: _Digest = _Digest()
    post_digest: _Digest = _Digest()


class _Outline(Struct):
    entries: list[_Digests]


class _Entries(Struct):
    entries: list[Raw]


_EMPTY: Final = b"\x80\x90\xc0\xc2\xc3"
_ALONE: Final = re.compile(rb"[\x00-\x80\x90\xc0\xc2\xc3\xe0-\xff]+")

_outline: Final = msgspec.msgpack.Decoder(_Outline)
_entries: Final = msgspec.msgpack.Decoder(_Entries)


def light_bytes(max_body_bytes: int) -> int:
    """How long a light body may be."""
    return max_body_bytes // _LIGHT_BODY


def is_light(body: bytes | bytearray, max_body_bytes: int) -> bool:
    """Whether a body is so short that it can't be too large in memory: `check_weight` is at once.

    Else it may take a tenth of a second, and belongs in a thread of its own.
    """
    return len(body) <= light_bytes(max_body_bytes)


def check_weight(
    body: bytes | bytearray, *, json: bool, max_body_bytes: int, max_entries: int
) -> None:
    """Refuse a body that would be many times as large in memory.

    What else may be wrong with it is left to the decoder. Raises `TooManyEntries`, `TooManyValues`,
    or `InvalidEntries` for MessagePack of other keys than `entries`.
    """
    if is_light(body, max_body_bytes):
        return
    if json:
        _check_json(body, max_body_bytes // _JSON_VALUES)
        return
    count = _announced_entries(body)
    if count > max_entries:
        raise TooManyEntries(f"{count} entries; at most {max_entries} are allowed")
    if len(body) > max_body_bytes // _LARGE_BODY:
        _check_parts(body, max_body_bytes)
    limit = max_body_bytes // _ENTRY_VALUES
    # A value of any kind may also be in a wrong place, or hidden behind another of the same key.
    for entry in _entries_of(body):
        if len(entry) > max_body_bytes // _LIGHT_ENTRY and count_values(entry, limit) > limit:
            raise _too_many(limit)
    try:
        outline = _outline.decode(body).entries
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The decoder will find the fault too, but perhaps not before it has decoded the rest.
        if count_values(body, limit) > limit:
            raise _too_many(limit) from None
        return
    limit = max_body_bytes // _SYMBOLS_VALUES
    symbols = _ARRAY_OF_MANY + b"".join(
        [digest.symbols for each in outline for digest in (each.pre_digest, each.post_digest)]
    )
    if len(symbols) > max_body_bytes // _LIGHT_BODY and count_values(symbols, limit) > limit:
        raise _too_many(limit)


def _entries_of(body: bytes | bytearray) -> list[Raw]:
    """The entries as they are; all of the body for one where it does not decode."""
    try:
        return _entries.decode(body).entries
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return [Raw(body)]


def count_values(data: bytes | bytearray, limit: int) -> int:
    """How many values some MessagePack holds, keys included; counting ends beyond `limit`.

    Values of one byte, which an attack is made of, are counted by runs.
    """
    view = memoryview(data)
    count = at = 0
    left = 1
    while left and at < len(view) and count <= limit:
        first = view[at]
        at += 1
        left -= 1
        count += 1
        if first < 0x80 or first >= 0xE0 or first in _EMPTY:
            if run := _ALONE.match(view, at, at + min(left, limit)):
                count += run.end() - at
                left -= run.end() - at
                at = run.end()
        elif first < 0xA0:
            left += first & 15 if first >= 0x90 else 2 * (first & 15)
        elif first < 0xC0:
            at += first & 31
        else:
            length_bytes, rest = _LAYOUTS[first - 0xC0]
            length = int.from_bytes(view[at : at + length_bytes])
            at += length_bytes + rest
            if first < 0xDC:
                at += length
            else:
                left += length if first < 0xDE else 2 * length
    return count


# Of the first bytes 0xc0 to 0xdf: the length of the length behind each, and what follows besides.
_LAYOUTS: Final = (
    *((0, 0),) * 4,  # nil, (none), false, true
    *((1, 0), (2, 0), (4, 0)),  # bin
    *((1, 1), (2, 1), (4, 1)),  # ext
    *((0, 4), (0, 8)),  # float
    *((0, 1), (0, 2), (0, 4), (0, 8)) * 2,  # uint, int
    *((0, 2), (0, 3), (0, 5), (0, 9), (0, 17)),  # fixext
    *((1, 0), (2, 0), (4, 0)),  # str
    *((2, 0), (4, 0)) * 2,  # array, map
)


def _announced_entries(body: bytes | bytearray) -> int:
    """How many entries some MessagePack begins with; 0 when it begins with something else."""
    unpacker = msgpack.Unpacker(raw=True)
    unpacker.feed(body[:_OPENING_BYTES])
    try:
        keys = unpacker.read_map_header()
        first = unpacker.unpack()
        count: int = unpacker.read_array_header()
    except (ValueError, msgpack.UnpackException):
        return 0
    if keys != 1 or first != b"entries":
        raise InvalidEntries("the body must be a map with the one key `entries`")
    return count


def _check_json(body: bytes | bytearray, limit: int) -> None:
    """Each value but the first of a list or map has a comma before it; text may hold more."""
    if sum(body.count(each) for each in (b",", b"[", b"{")) > limit:
        raise _too_many(limit)


def _check_parts(body: bytes | bytearray, max_body_bytes: int) -> None:
    limit = max_body_bytes * 3 // 2
    if sum(body.count(key) * size_bytes for key, size_bytes in _PARTS) > limit:
        raise _too_many(limit // _PARTS[0][1])


def _too_many(limit: int) -> TooManyValues:
    return TooManyValues(
        f"more than {limit} values in one request, which would take many times their size in "
        "memory; send it as several"
    )
