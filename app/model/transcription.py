"""Writing entries in JSON anew as MessagePack, compiled by numba.

    transcribe(text, table, out, to)  ->  how many entries, and where they end; or -1

`text` is the body of a request. Its entries are written to `out`, from `to` on, one after another,
each in the order in which its fields were sent, without those that have their default; bytes,
addresses, hashes and UUIDs as what they are instead of the text that JSON has for them. What is
unusual, as escapes in text, fractions, and what is not ASCII, is not transcribed: the decoder takes
such a body. What is transcribed need not be valid: `app.model.recognition` tells that, by the same
`table`. `out` has `room_for` them.
"""

from typing import Final

import numpy as np
from numba import types

from app.compiling import compiled
from app.model.recognition import (
    BINARY,
    DEFAULT,
    EVENTS,
    FIRST,
    FIXED,
    KIND,
    LAST,
    LIST,
    LOW,
    PART,
    STRUCT,
    SYMBOLS,
    TABLE,
    UUID,
    field,
)
from app.model.values import (
    BYTES,
    INT,
    OUT,
    PAIR,
    U,
    is_digit,
    put,
    put_hex,
    put_integer,
    put_length,
    put_text,
)

# Behind what was read, or -1, and behind what was written.
_FAILED: Final = (-1, 0)
_QUOTE: Final = ord('"')
_ONES: Final = np.uint64(0x0101010101010101)
_HIGHEST: Final = _ONES * np.uint64(0x80)
_SPACES: Final = _ONES * np.uint64(0x20)
_QUOTES: Final = _ONES * np.uint64(_QUOTE)
_BACKSLASHES: Final = _ONES * np.uint64(0x5C)
_DEPTH: Final = 8
_LAST_QUOTIENT: Final = (2**63 - 1) // 10
_UUID_BYTES: Final = 16
_MOST_FIXED: Final = 15
# What a header, a number, or a header that grows takes at most.
_MOST_AROUND: Final = 16

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_ENTRIES: Final = np.frombuffer(b"entries", np.uint8)
_NO_DIGIT: Final = 0x40
_DIGITS: Final = np.full(256, _NO_DIGIT, np.uint8)
for _value, _letter in enumerate(_ALPHABET):
    _DIGITS[_letter] = _value


def room_for(text_bytes: int) -> int:
    """How many bytes may be written for so many, and some more.

    Text of 256 bytes and more takes one byte more than with its quotes, of 64 KiB and more three.
    A longer header of a list or map takes less than its commas.
    """
    return text_bytes + text_bytes // 64 + 64


@compiled(INT(BYTES, INT), inline=True)
def _next(text, at):
    """Where the next token begins, or the end."""
    while at < len(text) and text[U(at)] in (0x20, 0x09, 0x0A, 0x0D):
        at += 1
    return at


@compiled(INT(BYTES, INT, types.uint8), inline=True)
def _behind(text, at, sign):
    """Behind a sign and the space around it, or -1."""
    at = _next(text, at)
    return _next(text, at + 1) if at < len(text) and text[U(at)] == sign else -1


@compiled(types.boolean(BYTES, INT), inline=True)
def _are_plain(text, at):
    """Whether 8 bytes are surely ASCII, and no quotes, backslashes or controls: all looked at once.

    A byte is zero if it has its highest bit when one is taken from it and has not before.
    """
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(text[U(at + i)]) << np.uint64(8 * i)
    quotes, escapes = word ^ _QUOTES, word ^ _BACKSLASHES
    odd = word | (word - _SPACES) | ((quotes - _ONES) & ~quotes) | ((escapes - _ONES) & ~escapes)
    return odd & _HIGHEST == 0


@compiled(PAIR(BYTES, INT), inline=True)
def _string(text, at):
    """Where the content of a string begins, and how long it is, if it is ASCII without escapes."""
    if at >= len(text) or text[U(at)] != _QUOTE:
        return _FAILED
    at += 1
    end = at
    while end + 8 <= len(text) and _are_plain(text, end):
        end += 8
    while end < len(text):
        byte = text[U(end)]
        if byte == _QUOTE:
            return at, end - at
        if byte < 0x20 or byte >= 0x80 or byte == ord("\\"):
            return _FAILED
        end += 1
    return _FAILED


@compiled(types.boolean(OUT, INT, INT), inline=True)
def _has_room(out, to, size):
    """Whether text of so many bytes, or any number, may be written, with the header before it.

    `room_for` makes sure of it; here a mistake in that would be in the way of nothing else.
    """
    return size + _MOST_AROUND <= len(out) - to


@compiled(INT(BYTES, INT, INT, OUT, INT), inline=True)
def _put_base64(text, at, size, out, to):
    """Write what base64 with its padding stands for; or -1."""
    if size & 3:
        return -1
    padding = 0
    while padding < 2 and padding < size and text[U(at + size - 1 - padding)] == ord("="):
        padding += 1
    to = put_length(out, to, size // 4 * 3 - padding, 0xC4)
    odd = np.uint8(0)
    whole = size // 4 - (padding > 0)
    for group in range(whole):
        bits = np.int64(0)
        for i in range(4):
            digit = _DIGITS[text[U(at + 4 * group + i)]]
            odd |= digit
            bits = bits << 6 | digit
        for i in range(3):
            out[U(to + 3 * group + i)] = (bits >> (16 - 8 * i)) & 0xFF
    to += 3 * whole
    if padding:
        bits = np.int64(0)
        for i in range(4 - padding):
            digit = _DIGITS[text[U(at + 4 * whole + i)]]
            odd |= digit
            bits = bits << 6 | digit
        spare = 2 * padding
        if bits & ((1 << spare) - 1):
            return -1
        to = put(out, to, bits >> spare, 3 - padding)
    return -1 if odd & _NO_DIGIT else to


@compiled(INT(BYTES, INT, INT, OUT, INT), inline=True)
def _put_uuid(text, at, size, out, to):
    if size != 36:
        return -1
    for dash in (8, 13, 18, 23):
        if text[U(at + dash)] != ord("-"):
            return -1
    return put_hex(text, at, size, _UUID_BYTES, out, to)


@compiled(PAIR(BYTES, INT, OUT, INT), inline=True)
def _number(text, at, out, to):
    """An integer of 64 bits with its sign, in its shortest form."""
    is_negative = at < len(text) and text[U(at)] == ord("-")
    at += is_negative
    start = at
    value = np.int64(0)
    while at < len(text) and is_digit(text[U(at)]):
        digit = np.int64(text[U(at)]) - ord("0")
        if value > _LAST_QUOTIENT or (value == _LAST_QUOTIENT and digit > 7):
            return _FAILED
        value = value * 10 + digit
        at += 1
    if at == start or (text[U(start)] == ord("0") and at > start + 1):
        return _FAILED
    if at < len(text) and text[U(at)] in (ord("."), ord("e"), ord("E")):
        return _FAILED
    return at, put_integer(-value if is_negative else value, out, to)


@compiled(PAIR(BYTES, INT, OUT, INT), inline=True)
def _literal(text, at, out, to):
    """`null`, `false` or `true`."""
    if len(text) - at < 5:
        return _FAILED
    first = text[U(at)]
    word = np.int64(0)
    for i in range(4):
        word = word << 8 | text[U(at + i)]
    if word == 0x6E756C6C:
        out[U(to)] = 0xC0
    elif word == 0x74727565:
        out[U(to)] = 0xC3
    elif word == 0x66616C73 and text[U(at + 4)] == ord("e"):
        out[U(to)] = 0xC2
    else:
        return _FAILED
    return at + (5 if first == ord("f") else 4), to + 1


@compiled(INT(OUT, INT, INT, INT, INT, INT), inline=True)
def _close(out, start, to, count, fixed, wide):
    """Write how many items there are in front of them, where one byte was left for it; or -1."""
    if count < 1 << 4:
        out[U(start)] = fixed | count
        return to
    if not _has_room(out, to, 0):
        return -1
    width = 2 if count < 1 << 16 else 4
    for i in range(to - start - 1):
        out[U(to + width - 1 - i)] = out[U(to - 1 - i)]
    out[U(start)] = wide + (width == 4)
    put(out, start + 1, count, width)
    return to + width


@compiled(INT(INT), inline=True)
def _header_bytes(fields):
    """How long the header of a struct is: as the encoder has it, longer where there may be many."""
    return 3 if fields > _MOST_FIXED else 1


@compiled(INT(OUT, INT, INT, INT, INT), inline=True)
def _close_struct(out, start, to, count, fields):
    """Write how many fields there are in front of them."""
    if _header_bytes(fields) == 1:
        out[U(start)] = 0x80 | count
    else:
        out[U(start)] = 0xDE
        put(out, start + 1, count, 2)
    return to


@compiled(PAIR(BYTES, INT, types.uint8), inline=True)
def _first(text, at, closing):
    """Behind an opening sign: where the first item is, and 1; or behind the closing sign, and 0."""
    at = _next(text, at + 1)
    if at >= len(text):
        return _FAILED
    return (at + 1, 0) if text[U(at)] == closing else (at, 1)


@compiled(PAIR(BYTES, INT, types.uint8), inline=True)
def _further(text, at, closing):
    """Likewise behind an item."""
    at = _next(text, at)
    if at >= len(text):
        return _FAILED
    if text[U(at)] == ord(","):
        return _next(text, at + 1), 1
    return (at + 1, 0) if text[U(at)] == closing else _FAILED


@compiled(PAIR(BYTES, INT, OUT, INT, INT))
def _anything(text, at, out, to, depth):
    """A value in `symbols`."""
    if at >= len(text) or depth == 0 or not _has_room(out, to, 0):
        return _FAILED
    first = text[U(at)]
    if first == _QUOTE:
        at, size = _string(text, at)
        if at < 0 or not _has_room(out, to, size):
            return _FAILED
        return at + size + 1, put_text(text, at, size, out, to)
    if first == ord("-") or is_digit(first):
        return _number(text, at, out, to)
    is_map = first == ord("{")
    if not is_map and first != ord("["):
        return _literal(text, at, out, to)
    closing = np.uint8(ord("}") if is_map else ord("]"))
    start, count = to, 0
    to += 1
    at, more = _first(text, at, closing)
    while more:
        if is_map:
            at, size = _string(text, at)
            if at < 0 or not _has_room(out, to, size):
                return _FAILED
            to = put_text(text, at, size, out, to)
            at = _behind(text, at + size + 1, ord(":"))
            if at < 0:
                return _FAILED
        at, to = _anything(text, at, out, to, depth - 1)
        if at < 0:
            return _FAILED
        count += 1
        at, more = _further(text, at, closing)
    if at < 0:
        return _FAILED
    fixed, wide = (0x80, 0xDE) if is_map else (0x90, 0xDC)
    to = _close(out, start, to, count, fixed, wide)
    return (at, to) if to >= 0 else _FAILED


@compiled(PAIR(BYTES, INT, INT, TABLE, OUT, INT), inline=True)
def _scalar(text, at, row, table, out, to):
    """A field's value that is no struct and no list of them."""
    kind = table[U(row), KIND]
    if kind == SYMBOLS:
        return _anything(text, at, out, to, _DEPTH)
    if at >= len(text) or not _has_room(out, to, 0):
        return _FAILED
    if text[U(at)] != _QUOTE:
        first = text[U(at)]
        if first == ord("-") or is_digit(first):
            return _number(text, at, out, to)
        return _literal(text, at, out, to)
    at, size = _string(text, at)
    if at < 0 or not _has_room(out, to, size):
        return _FAILED
    if kind == BINARY:
        to = _put_base64(text, at, size, out, to)
    elif kind == UUID:
        to = _put_uuid(text, at, size, out, to)
    elif kind == FIXED:
        length = table[U(row), LOW]
        if size != 2 + 2 * length or text[U(at)] != ord("0") or text[U(at + 1)] != ord("x"):
            return _FAILED
        to = put_hex(text, at + 2, 2 * length, length, out, to)
    else:
        to = put_text(text, at, size, out, to)
    return (at + size + 1, to) if to >= 0 else _FAILED


@compiled(PAIR(BYTES, INT, INT, TABLE, OUT, INT))
def _struct(text, at, part, table, out, to):
    """An object with the fields of a struct."""
    if at >= len(text) or text[U(at)] != ord("{") or not _has_room(out, to, 0):
        return _FAILED
    first, last = table[U(part), FIRST], table[U(part), LAST]
    expected = first
    seen = np.int64(0)
    start, count = to, 0
    to += _header_bytes(last - first)
    at, more = _first(text, at, ord("}"))
    while more:
        at, size = _string(text, at)
        if at < 0 or not _has_room(out, to, size):
            return _FAILED
        row = field(text, at, size, table, first, last, expected)
        if row < 0 or seen >> (row - first) & 1:
            return _FAILED
        seen |= np.int64(1) << (row - first)
        expected = row + 1 if row + 1 < last else first
        name = to
        to = value = put_text(text, at, size, out, to)
        at = _behind(text, at + size + 1, ord(":"))
        if at < 0 or at >= len(text) or not _has_room(out, to, 0):
            return _FAILED
        kind, of = table[U(row), KIND], table[U(row), PART]
        if kind == STRUCT and text[U(at)] == ord("{"):
            at, to = _struct(text, at, of, table, out, to)
        elif kind in (LIST, EVENTS) and text[U(at)] == ord("["):
            list_start, items = to, 0
            to += 1
            at, more = _first(text, at, ord("]"))
            while more:
                at, to = _struct(text, at, of, table, out, to)
                if at < 0:
                    return _FAILED
                items += 1
                at, more = _further(text, at, ord("]"))
            to = _close(out, list_start, to, items, 0x90, 0xDC)
        else:
            at, to = _scalar(text, at, row, table, out, to)
        if at < 0 or to < 0:
            return _FAILED
        if to == value + 1 and out[U(value)] == table[U(row), DEFAULT]:
            to = name
        else:
            count += 1
        at, more = _further(text, at, ord("}"))
    return (at, _close_struct(out, start, to, count, last - first)) if at >= 0 else _FAILED


@compiled(PAIR(BYTES, TABLE, OUT, INT))
def transcribe(text, table, out, to):
    """How many entries were written to `out` from `to` on, and where they end; or (-1, 0)."""
    at = _behind(text, 0, ord("{"))
    if at < 0:
        return _FAILED
    at, size = _string(text, at)
    if at < 0 or size != len(_ENTRIES):
        return _FAILED
    for i in range(size):
        if text[U(at + i)] != _ENTRIES[i]:
            return _FAILED
    at = _behind(text, at + size + 1, ord(":"))
    if at < 0 or at >= len(text) or text[U(at)] != ord("["):
        return _FAILED
    count = 0
    at, more = _first(text, at, ord("]"))
    while more:
        at, to = _struct(text, at, 0, table, out, to)
        if at < 0:
            return _FAILED
        count += 1
        at, more = _further(text, at, ord("]"))
    if at < 0 or _behind(text, at, ord("}")) != len(text):
        return _FAILED
    return count, to
