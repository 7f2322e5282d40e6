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
from app.model.values import (
    BYTES,
    INT,
    U,
    binary,
    hex_digit,
    integer,
    is_digit,
    list_of,
    map_of,
    text,
    unsigned,
    word_at,
)

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

TABLE: Final = types.Array(types.int64, 2, "C", readonly=True)
_FOUND: Final = types.int64[::1]


@compiled(types.boolean(BYTES, INT, INT), inline=True)
def _is_plain(data, at, size):
    """Whether text is ASCII without NUL. Without a way out of the loop, which is so in vectors."""
    odd = np.uint8(0)
    for i in range(size):
        byte = data[U(at + i)]
        odd |= byte | (byte - np.uint8(1))
    return odd & np.uint8(0x80) == 0


@compiled(types.boolean(BYTES, INT, INT), inline=True)
def _is_type_name(data, at, size):
    for i in range(size):
        byte = data[U(at + i)]
        is_letter = ord("A") <= byte & 0xDF <= ord("Z")
        if not (is_letter or (i > 0 and (is_digit(byte) or byte == ord("_")))):
            return False
    return size > 0


@compiled(types.boolean(BYTES, INT, INT), inline=True)
def _is_decimal(data, at, size):
    """Whether it is a decimal in plain notation, with so few digits that all may be significant."""
    end = at + size
    if size and data[U(at)] == ord("-"):
        at += 1
    digits = run = points = 0
    while at < end:
        byte = data[U(at)]
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


@compiled(types.boolean(BYTES, INT, INT), inline=True)
def _is_hex(data, at, size):
    odd = np.int64(0)
    for i in range(size):
        odd |= hex_digit(data[U(at + i)])
    return odd >= 0


@compiled(INT(BYTES, INT, INT), inline=True)
def _fixed(data, at, length):
    """The end of `length` bytes, or of their hex digits."""
    content, size = binary(data, at)
    if content >= 0:
        return content + size if size == length else -1
    content, size = text(data, at)
    if content < 0 or size != 2 + 2 * length:
        return -1
    if data[U(content)] != ord("0") or data[U(content + 1)] != ord("x"):
        return -1
    return content + size if _is_hex(data, content + 2, 2 * length) else -1


@compiled(INT(BYTES, INT, _FOUND), inline=True)
def _uuid(data, at, found):
    """The end of a UUID, in 16 bytes or as text; takes it down."""
    place = found[_ENTRY]
    content, size = binary(data, at)
    if content >= 0:
        if size != 16:
            return -1
        found[U(place)] = word_at(data, content, 8)
        found[U(place + 1)] = word_at(data, content + 8, 8)
        return content + size
    content, size = text(data, at)
    if content < 0 or size != 36:
        return -1
    digits = 0
    word = np.int64(0)
    for i in range(size):
        byte = data[U(content + i)]
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
            found[U(place + (digits >> 4) - 1)] = word
            word = np.int64(0)
    return content + size


@compiled(INT(BYTES, INT, types.boolean), inline=True)
def _finite(data, at, is_double):
    """The end of a floating-point number that is neither infinite nor NaN."""
    width = 8 if is_double else 4
    if width > len(data) - at:
        return -1
    exponent = unsigned(data, at, 2) >> (4 if is_double else 7) & (0x7FF if is_double else 0xFF)
    return -1 if exponent == (0x7FF if is_double else 0xFF) else at + width


@compiled(INT(BYTES, INT, INT))
def _anything(data, at, depth):
    """The end of a value in `symbols`."""
    if at >= len(data) or depth == 0:
        return -1
    first = np.int64(data[U(at)])
    if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return at + 1
    if first < 0xA0 or first >= 0xDC:
        is_map = first < 0x90 or first >= 0xDE
        at, count = map_of(data, at) if is_map else list_of(data, at)
        if at < 0:
            return -1
        for _ in range(count):
            if is_map:
                at, size = text(data, at)
                if at < 0 or size > MAX_TEXT_BYTES or not _is_plain(data, at, size):
                    return -1
                at += size
            at = _anything(data, at, depth - 1)
            if at < 0:
                return -1
        return at
    if 0xCC <= first <= 0xD3:
        at, _ = integer(data, at)
        return at
    if first in (0xCA, 0xCB):
        return _finite(data, at + 1, first == 0xCB)
    at, size = text(data, at)
    if at < 0 or size > MAX_TEXT_BYTES or not _is_plain(data, at, size):
        return -1
    return at + size


def name_words(name: str) -> list[int]:
    """A field's name as its columns hold it. Raises `TypeError` for one that is too long."""
    padded = name.encode().ljust(8 * NAME_WORDS, b"\0")
    if len(padded) > 8 * NAME_WORDS:
        raise TypeError(f"{name} is too long a name")
    words: list[int] = np.frombuffer(padded, "<i8").tolist()
    return words


@compiled(INT(BYTES, INT, INT, TABLE, INT, INT, INT), inline=True)
def field(data, at, size, table, first, last, expected):
    """The row of the field of a name, sought from the `expected` one on; or -1."""
    for step in range(last - first):
        row = expected + step
        if row >= last:
            row -= last - first
        if table[U(row), NAME_BYTES] != size:
            continue
        same = True
        for number in range(size >> 3):
            same &= word_at(data, at + 8 * number, 8) == table[U(row), U(NAME + number)]
        if size & 7:
            rest = word_at(data, at + (size & ~7), size & 7)
            same &= rest == table[U(row), U(NAME + (size >> 3))]
        if same:
            return row
    return -1


@compiled(INT(BYTES, INT, INT, TABLE, _FOUND), inline=True)
def _scalar(data, at, row, table, found):
    """The end of a field's value that is no struct and no list of them."""
    kind = table[U(row), KIND]
    low, high = table[U(row), LOW], table[U(row), HIGH]
    if kind in (INTEGER, EVENT_INDEX):
        at, value = integer(data, at)
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
        content, _ = map_of(data, at)
        return -1 if content < 0 else _anything(data, at, _SYMBOLS_DEPTH)
    at, size = binary(data, at) if kind == BINARY else text(data, at)
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


@compiled(INT(BYTES, INT, INT, TABLE, _FOUND))
def _struct(data, at, part, table, found):
    """The end of a map with the fields of a struct, each of them once at most."""
    at, count = map_of(data, at)
    if at < 0:
        return -1
    first, last = table[U(part), FIRST], table[U(part), LAST]
    expected = first
    seen = np.int64(0)
    for _ in range(count):
        at, size = text(data, at)
        if at < 0:
            return -1
        row = field(data, at, size, table, first, last, expected)
        if row < 0 or seen >> (row - first) & 1:
            return -1
        seen |= np.int64(1) << (row - first)
        expected = row + 1 if row + 1 < last else first
        at += size
        kind = table[U(row), KIND]
        if at < len(data) and data[U(at)] == 0xC0:
            at = at + 1 if table[U(row), NULLABLE] else -1
        elif kind == STRUCT:
            at = _struct(data, at, table[U(row), PART], table, found)
        elif kind in (LIST, EVENTS):
            at, items = list_of(data, at)
            if kind == EVENTS:
                found[_EVENTS] = items
            for _ in range(items):
                at = _struct(data, at, table[U(row), PART], table, found)
                if at < 0:
                    return -1
        else:
            at = _scalar(data, at, row, table, found)
        if at < 0:
            return -1
    required = table[U(part), REQUIRED]
    return at if seen & required == required else -1


@compiled(types.boolean(BYTES, INT, INT, BYTES), inline=True)
def _is_among(data, at, size, watched):
    """Whether a name is a watched one."""
    if len(watched) == 1 and watched[0] == ANY_NAME:
        return True
    start = 0
    for i in range(len(watched)):
        if watched[U(i)] == 0:
            if i - start == size:
                same = True
                for k in range(size):
                    same &= watched[U(start + k)] == data[U(at + k)]
                if same:
                    return True
            start = i + 1
    return False


@compiled(INT(BYTES, INT, INT, TABLE, BYTES, _FOUND))
def recognize(data, at, count, table, watched, found):
    """The end of `count` entries from `at` on, or -1; what is to say about them in `found`."""
    found[IS_WATCHED] = 0
    for number in range(count):
        found[_ENTRY] = KEYS + 2 * number
        found[_EVENTS] = 0
        found[_LARGEST_INDEX] = -1
        found[_TYPE_BYTES] = 0
        at = _struct(data, at, 0, table, found)
        if at < 0 or found[_LARGEST_INDEX] >= found[_EVENTS]:
            return -1
        if found[_TYPE_BYTES] and _is_among(data, found[_TYPE_AT], found[_TYPE_BYTES], watched):
            found[IS_WATCHED] = 1
    return at
