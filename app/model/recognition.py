"""Recognizing packed entries that are surely valid, compiled by numba.

    recognize(data, at, count, table, watched, found)  ->  where they end, or -1

What is told is whether every one of `count` entries, packed one after another in MessagePack from
`at` on, keeps all limits and rules of the protocol, section 3. Whatever is unusual is not
recognized, be it valid or not: the decoder decides then, and finds the words for what is wrong. No
object is made, nothing is copied, and the interpreter is unlocked meanwhile.

`table` is what `app.model.grammar` makes of the entry types: a row for each struct and each field.
"""

from typing import Final

import numpy as np
from numba import types

from app.compiling import compiled

# Columns of a struct's row: its fields' rows, from the first up to the last, and a bit for each one
# that must be there.
FIRST: Final = 0
LAST: Final = 1
REQUIRED: Final = 2
# Columns of a field's row: its name's length, what it holds, whether it may be nil, the limits of
# its value or length, the row of the struct that it is made of, the byte that encodes its default,
# or -1, and its name in words of 8 bytes.
NAME_BYTES: Final = 0
KIND: Final = 1
NULLABLE: Final = 2
LOW: Final = 3
HIGH: Final = 4
PART: Final = 5
DEFAULT: Final = 6
NAME: Final = 7
NAME_WORDS: Final = 4
COLUMNS: Final = NAME + NAME_WORDS

# Kinds of fields. What is text is recognized in ASCII, without NUL.
INTEGER: Final = 0
TEXT: Final = 1
TYPE_NAME: Final = 2
DECIMAL: Final = 3
BINARY: Final = 4
UUID: Final = 5
# `LOW` bytes, or twice as many hex digits behind `0x`.
FIXED: Final = 6
STRUCT: Final = 7
LIST: Final = 8
# A map of text to anything that has no limits but its depth, and those of text and integers.
SYMBOLS: Final = 9
# The list that an index points into, and such an index.
EVENTS: Final = 10
EVENT_INDEX: Final = 11
# The name that may be a watched one.
COMMAND_TYPE: Final = 12

# What `found` begins with: whether a command has a type that is watched, and notes of the entry
# that is looked at. Behind it come two words for each entry's request_uuid, as its bytes lie.
IS_WATCHED: Final = 0
_ENTRY: Final = 1
_EVENTS: Final = 2
_LARGEST_INDEX: Final = 3
_TYPE_AT: Final = 4
_TYPE_BYTES: Final = 5
KEYS: Final = 6

# `watched` holds names, each with a NUL behind it; this alone is every name.
ANY_NAME: Final = ord("*")

MAX_TEXT_BYTES: Final = 1024
MAX_DECIMAL_DIGITS: Final = 28
# Much less than is allowed: what is deeper is rare.
_SYMBOLS_DEPTH: Final = 8

_BYTES: Final = types.Array(types.uint8, 1, "C", readonly=True)
_TABLE: Final = types.Array(types.int64, 2, "C", readonly=True)
_FOUND: Final = types.int64[::1]
_INT: Final = types.int64
# Of a value: where it ends, or its content begins, or -1; and what it is, or how long.
_PAIR: Final = types.UniTuple(types.int64, 2)
# An unsigned index: numba need not look whether it counts from the end.
_U: Final = np.uintp
_NOTHING: Final = (-1, 0)


@compiled(_INT(_BYTES, _INT, _INT), inline=True)
def _unsigned(data, at, size):
    """`size` bytes as an integer; one of 64 bits may be negative."""
    value = np.int64(0)
    for i in range(size):
        value = value << 8 | data[_U(at + i)]
    return value


@compiled(_INT(_BYTES, _INT, _INT), inline=True)
def _word(data, at, size):
    """Up to 8 bytes as they lie."""
    word = np.int64(0)
    for i in range(size):
        word |= np.int64(data[_U(at + i)]) << (8 * i)
    return word


@compiled(_PAIR(_BYTES, _INT, _INT), inline=True)
def _sized(data, at, width):
    """What lies behind a length of so many bytes."""
    if width > len(data) - at:
        return _NOTHING
    size = _unsigned(data, at, width)
    at += width
    if size > len(data) - at:
        return _NOTHING
    return at, size


@compiled(_PAIR(_BYTES, _INT), inline=True)
def _text(data, at):
    if at >= len(data):
        return _NOTHING
    first = np.int64(data[_U(at)])
    if first & 0xE0 == 0xA0:
        size = first & 0x1F
        return _NOTHING if size >= len(data) - at else (at + 1, size)
    if 0xD9 <= first <= 0xDB:
        return _sized(data, at + 1, 1 << (first - 0xD9))
    return _NOTHING


@compiled(_PAIR(_BYTES, _INT), inline=True)
def _binary(data, at):
    if at >= len(data):
        return _NOTHING
    first = np.int64(data[_U(at)])
    return _sized(data, at + 1, 1 << (first - 0xC4)) if 0xC4 <= first <= 0xC6 else _NOTHING


@compiled(_PAIR(_BYTES, _INT), inline=True)
def _integer(data, at):
    """One that fits 64 bits with its sign."""
    if at >= len(data):
        return _NOTHING
    first = np.int64(data[_U(at)])
    at += 1
    if first < 0x80:
        return at, first
    if first >= 0xE0:
        return at, first - 0x100
    if not 0xCC <= first <= 0xD3:
        return _NOTHING
    width = 1 << ((first - 0xCC) & 3)
    if width > len(data) - at:
        return _NOTHING
    value = _unsigned(data, at, width)
    if first < 0xD0:
        return (at + width, value) if value >= 0 else _NOTHING
    if width < 8 and value >> (8 * width - 1):
        value -= np.int64(1) << (8 * width)
    return at + width, value


@compiled(_PAIR(_BYTES, _INT, _INT, _INT), inline=True)
def _several(data, at, fixed, wide):
    """How many items a list (0x90, 0xdc) or map (0x80, 0xde) has, and where the first begins."""
    if at >= len(data):
        return _NOTHING
    first = np.int64(data[_U(at)])
    at += 1
    if first & 0xF0 == fixed:
        return at, first & 0x0F
    width = 2 if first == wide else 4
    if not wide <= first <= wide + 1 or width > len(data) - at:
        return _NOTHING
    return at + width, _unsigned(data, at, width)


@compiled(_PAIR(_BYTES, _INT), inline=True)
def _map(data, at):
    return _several(data, at, 0x80, 0xDE)


@compiled(_PAIR(_BYTES, _INT), inline=True)
def _list(data, at):
    return _several(data, at, 0x90, 0xDC)


@compiled(types.boolean(_BYTES, _INT, _INT), inline=True)
def _is_plain(data, at, size):
    """Whether text is ASCII without NUL. Without a way out of the loop, which is so in vectors."""
    odd = np.uint8(0)
    for i in range(size):
        byte = data[_U(at + i)]
        odd |= byte | (byte - np.uint8(1))
    return odd & np.uint8(0x80) == 0


@compiled(types.boolean(types.uint8), inline=True)
def is_digit(byte):
    """Whether it is a decimal digit."""
    return ord("0") <= byte <= ord("9")


@compiled(types.boolean(_BYTES, _INT, _INT), inline=True)
def _is_type_name(data, at, size):
    for i in range(size):
        byte = data[_U(at + i)]
        is_letter = ord("A") <= byte & 0xDF <= ord("Z")
        if not (is_letter or (i > 0 and (is_digit(byte) or byte == ord("_")))):
            return False
    return size > 0


@compiled(types.boolean(_BYTES, _INT, _INT), inline=True)
def _is_decimal(data, at, size):
    """Whether it is a decimal in plain notation, with so few digits that all may be significant."""
    end = at + size
    if size and data[_U(at)] == ord("-"):
        at += 1
    digits = run = points = 0
    while at < end:
        byte = data[_U(at)]
        if is_digit(byte):
            digits += 1
            run += 1
        elif byte == ord(".") and run and not points:
            points = 1
            run = 0
        else:
            return False
        at += 1
    return run > 0 and digits <= MAX_DECIMAL_DIGITS


@compiled(_INT(types.uint8), inline=True)
def hex_digit(byte):
    """The value of a hex digit, or -1."""
    if is_digit(byte):
        return np.int64(byte) - ord("0")
    lower = np.int64(byte | 0x20)
    return lower - ord("a") + 10 if ord("a") <= lower <= ord("f") else -1


@compiled(types.boolean(_BYTES, _INT, _INT), inline=True)
def _is_hex(data, at, size):
    odd = np.int64(0)
    for i in range(size):
        odd |= hex_digit(data[_U(at + i)])
    return odd >= 0


@compiled(_INT(_BYTES, _INT, _INT), inline=True)
def _fixed(data, at, length):
    """The end of `length` bytes, or of their hex digits."""
    content, size = _binary(data, at)
    if content >= 0:
        return content + size if size == length else -1
    content, size = _text(data, at)
    if content < 0 or size != 2 + 2 * length:
        return -1
    if data[_U(content)] != ord("0") or data[_U(content + 1)] != ord("x"):
        return -1
    return content + size if _is_hex(data, content + 2, 2 * length) else -1


@compiled(_INT(_BYTES, _INT, _FOUND), inline=True)
def _uuid(data, at, found):
    """The end of a UUID, in 16 bytes or as text; takes it down."""
    place = found[_ENTRY]
    content, size = _binary(data, at)
    if content >= 0:
        if size != 16:
            return -1
        found[_U(place)] = _word(data, content, 8)
        found[_U(place + 1)] = _word(data, content + 8, 8)
        return content + size
    content, size = _text(data, at)
    if content < 0 or size != 36:
        return -1
    digits = 0
    word = np.int64(0)
    for i in range(size):
        byte = data[_U(content + i)]
        if i in (8, 13, 18, 23):
            if byte != ord("-"):
                return -1
            continue
        digit = hex_digit(byte)
        if digit < 0:
            return -1
        # Two digits a byte, the higher one first.
        word |= digit << (4 * ((digits & 15) ^ 1))
        digits += 1
        if digits & 15 == 0:
            found[_U(place + (digits >> 4) - 1)] = word
            word = np.int64(0)
    return content + size


@compiled(_INT(_BYTES, _INT, types.boolean), inline=True)
def _finite(data, at, is_double):
    """The end of a floating-point number that is neither infinite nor NaN."""
    width = 8 if is_double else 4
    if width > len(data) - at:
        return -1
    exponent = _unsigned(data, at, 2) >> (4 if is_double else 7) & (0x7FF if is_double else 0xFF)
    return -1 if exponent == (0x7FF if is_double else 0xFF) else at + width


@compiled(_INT(_BYTES, _INT, _INT))
def _anything(data, at, depth):
    """The end of a value in `symbols`."""
    if at >= len(data) or depth == 0:
        return -1
    first = np.int64(data[_U(at)])
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return at + 1
    if first < 0xA0 or first >= 0xDC:
        is_map = first < 0x90 or first >= 0xDE
        at, count = _map(data, at) if is_map else _list(data, at)
        if at < 0:
            return -1
        for _ in range(count):
            if is_map:
                at, size = _text(data, at)
                if at < 0 or size > MAX_TEXT_BYTES or not _is_plain(data, at, size):
                    return -1
                at += size
            at = _anything(data, at, depth - 1)
            if at < 0:
                return -1
        return at
    if 0xCC <= first <= 0xD3:
        at, _ = _integer(data, at)
        return at
    if first in (0xCA, 0xCB):
        return _finite(data, at + 1, first == 0xCB)
    at, size = _text(data, at)
    if at < 0 or size > MAX_TEXT_BYTES or not _is_plain(data, at, size):
        return -1
    return at + size


@compiled(_INT(_BYTES, _INT, _INT, _TABLE, _INT, _INT, _INT), inline=True)
def field(data, at, size, table, first, last, expected):
    """The row of the field of a name, sought from the `expected` one on; or -1."""
    for step in range(last - first):
        row = expected + step
        if row >= last:
            row -= last - first
        if table[_U(row), NAME_BYTES] != size:
            continue
        same = True
        for number in range(size >> 3):
            same &= _word(data, at + 8 * number, 8) == table[_U(row), _U(NAME + number)]
        if size & 7:
            rest = _word(data, at + (size & ~7), size & 7)
            same &= rest == table[_U(row), _U(NAME + (size >> 3))]
        if same:
            return row
    return -1


@compiled(_INT(_BYTES, _INT, _INT, _TABLE, _FOUND), inline=True)
def _scalar(data, at, row, table, found):
    """The end of a field's value that is no struct and no list of them."""
    kind = table[_U(row), KIND]
    low, high = table[_U(row), LOW], table[_U(row), HIGH]
    if kind in (INTEGER, EVENT_INDEX):
        at, value = _integer(data, at)
        if at < 0 or value < low or value > high:
            return -1
        if kind == EVENT_INDEX:
            found[_LARGEST_INDEX] = max(found[_LARGEST_INDEX], value)
        return at
    if kind == UUID:
        return _uuid(data, at, found)
    if kind == FIXED:
        return _fixed(data, at, low)
    if kind == SYMBOLS:
        content, _ = _map(data, at)
        return -1 if content < 0 else _anything(data, at, _SYMBOLS_DEPTH)
    at, size = _binary(data, at) if kind == BINARY else _text(data, at)
    if at < 0 or size < low or size > high:
        return -1
    if kind == TEXT:
        is_right = _is_plain(data, at, size)
    elif kind in (TYPE_NAME, COMMAND_TYPE):
        is_right = _is_type_name(data, at, size)
        if kind == COMMAND_TYPE:
            found[_TYPE_AT] = at
            found[_TYPE_BYTES] = size
    else:
        is_right = kind == BINARY or _is_decimal(data, at, size)
    return at + size if is_right else -1


@compiled(_INT(_BYTES, _INT, _INT, _TABLE, _FOUND))
def _struct(data, at, part, table, found):
    """The end of a map with the fields of a struct, each of them once at most."""
    at, count = _map(data, at)
    if at < 0:
        return -1
    first, last = table[_U(part), FIRST], table[_U(part), LAST]
    expected = first
    seen = np.int64(0)
    for _ in range(count):
        at, size = _text(data, at)
        if at < 0:
            return -1
        row = field(data, at, size, table, first, last, expected)
        if row < 0 or seen >> (row - first) & 1:
            return -1
        seen |= np.int64(1) << (row - first)
        expected = row + 1 if row + 1 < last else first
        at += size
        kind = table[_U(row), KIND]
        if at < len(data) and data[_U(at)] == 0xC0:
            at = at + 1 if table[_U(row), NULLABLE] else -1
        elif kind == STRUCT:
            at = _struct(data, at, table[_U(row), PART], table, found)
        elif kind in (LIST, EVENTS):
            at, items = _list(data, at)
            if kind == EVENTS:
                found[_EVENTS] = items
            for _ in range(items):
                at = _struct(data, at, table[_U(row), PART], table, found)
                if at < 0:
                    return -1
        else:
            at = _scalar(data, at, row, table, found)
        if at < 0:
            return -1
    required = table[_U(part), REQUIRED]
    return at if seen & required == required else -1


@compiled(types.boolean(_BYTES, _INT, _INT, _BYTES), inline=True)
def _is_among(data, at, size, watched):
    """Whether a name is a watched one."""
    if len(watched) == 1 and watched[0] == ANY_NAME:
        return True
    start = 0
    for i in range(len(watched)):
        if watched[_U(i)] == 0:
            if i - start == size:
                same = True
                for k in range(size):
                    same &= watched[_U(start + k)] == data[_U(at + k)]
                if same:
                    return True
            start = i + 1
    return False


@compiled(_INT(_BYTES, _INT, _INT, _TABLE, _BYTES, _FOUND))
def recognize(data, at, count, table, watched, found):
    """The end of `count` entries from `at` on, or -1; what is to say about them in `found`."""
    found[IS_WATCHED] = 0
    for number in range(count):
        found[_ENTRY] = KEYS + 2 * number
        found[_EVENTS] = 0
        found[_LARGEST_INDEX] = -1
        found[_TYPE_BYTES] = 0
        at = _struct(data, at, 0, table, found)
        if at < 0 or found[_LARGEST_INDEX] >= max(found[_EVENTS], np.int64(0)):
            return -1
        if found[_TYPE_BYTES] and _is_among(data, found[_TYPE_AT], found[_TYPE_BYTES], watched):
            found[IS_WATCHED] = 1
    return at
