"""MessagePack values where they lie, compiled by numba: how they are read, and written.

Whoever reads one is told where it ends, or where its content begins, or -1 where there is none of
its kind; and what it is, or how long. None is read beyond the end of the data. Whoever writes has
made sure of the room, and is told where the next goes. Integers are those of 64 bits with a sign.
"""

from typing import Final

import numpy as np
from numba import types

from app.compiling import compiled

BYTES: Final = types.Array(types.uint8, 1, "C", readonly=True)
OUT: Final = types.uint8[::1]
INT: Final = types.int64
PAIR: Final = types.UniTuple(types.int64, 2)
# An unsigned index: numba need not look whether it counts from the end.
U: Final = np.uintp
NOTHING: Final = (-1, 0)


@compiled(INT(BYTES, INT, INT), inline=True)
def unsigned(data, at, size):
    """`size` bytes as an integer; one of 64 bits may be negative."""
    value = np.int64(0)
    for i in range(size):
        value = value << 8 | data[U(at + i)]
    return value


@compiled(INT(BYTES, INT, INT), inline=True)
def word_at(data, at, size):
    """Up to 8 bytes as they lie."""
    word = np.int64(0)
    for i in range(size):
        word |= np.int64(data[U(at + i)]) << (8 * i)
    return word


@compiled(PAIR(BYTES, INT, INT), inline=True)
def _sized(data, at, width):
    """What lies behind a length of so many bytes."""
    if width > len(data) - at:
        return NOTHING
    size = unsigned(data, at, width)
    at += width
    if size > len(data) - at:
        return NOTHING
    return at, size


@compiled(PAIR(BYTES, INT), inline=True)
def text(data, at):
    """Text; what it holds is not looked at."""
    if at >= len(data):
        return NOTHING
    first = np.int64(data[U(at)])
    if first & 0xE0 == 0xA0:
        size = first & 0x1F
        return NOTHING if size >= len(data) - at else (at + 1, size)
    if 0xD9 <= first <= 0xDB:
        return _sized(data, at + 1, 1 << (first - 0xD9))
    return NOTHING


@compiled(PAIR(BYTES, INT), inline=True)
def binary(data, at):
    """Binary data."""
    if at >= len(data):
        return NOTHING
    first = np.int64(data[U(at)])
    return _sized(data, at + 1, 1 << (first - 0xC4)) if 0xC4 <= first <= 0xC6 else NOTHING


@compiled(PAIR(BYTES, INT), inline=True)
def integer(data, at):
    """One that fits 64 bits with its sign."""
    if at >= len(data):
        return NOTHING
    first = np.int64(data[U(at)])
    at += 1
    if first < 0x80:
        return at, first
    if first >= 0xE0:
        return at, first - 0x100
    if not 0xCC <= first <= 0xD3:
        return NOTHING
    width = 1 << ((first - 0xCC) & 3)
    if width > len(data) - at:
        return NOTHING
    value = unsigned(data, at, width)
    if first < 0xD0:
        return (at + width, value) if value >= 0 else NOTHING
    if width < 8 and value >> (8 * width - 1):
        value -= np.int64(1) << (8 * width)
    return at + width, value


@compiled(PAIR(BYTES, INT, INT, INT), inline=True)
def _several(data, at, fixed, wide):
    """How many items a list (0x90, 0xdc) or map (0x80, 0xde) has, and where the first begins."""
    if at >= len(data):
        return NOTHING
    first = np.int64(data[U(at)])
    at += 1
    if first & 0xF0 == fixed:
        return at, first & 0x0F
    width = 2 if first == wide else 4
    if not wide <= first <= wide + 1 or width > len(data) - at:
        return NOTHING
    return at + width, unsigned(data, at, width)


@compiled(PAIR(BYTES, INT), inline=True)
def map_of(data, at):
    """How many pairs a map has, and where the first begins."""
    return _several(data, at, 0x80, 0xDE)


@compiled(PAIR(BYTES, INT), inline=True)
def list_of(data, at):
    """How many items an array has, and where the first begins."""
    return _several(data, at, 0x90, 0xDC)


@compiled(INT(BYTES, INT))
def behind(data, at):
    """The end of any value, or -1."""
    left = np.int64(1)
    while left:
        left -= 1
        if not 0 <= at < len(data):
            return -1
        first = np.int64(data[U(at)])
        if first < 0x80 or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
            at += 1
        elif first < 0x90 or first in (0xDE, 0xDF):
            at, count = map_of(data, at)
            left += 2 * count
        elif first < 0xA0 or first in (0xDC, 0xDD):
            at, count = list_of(data, at)
            left += count
        elif first < 0xC0 or 0xD9 <= first <= 0xDB:
            at, size = text(data, at)
            at = at + size if at >= 0 else -1
        elif 0xC4 <= first <= 0xC6:
            at, size = binary(data, at)
            at = at + size if at >= 0 else -1
        elif first in (0xCA, 0xCB):
            at += 5 if first == 0xCA else 9
        else:
            at, _ = integer(data, at)
    return at if 0 <= at <= len(data) else -1


@compiled(types.boolean(types.uint8), inline=True)
def is_digit(byte):
    """Whether it is a decimal digit."""
    return ord("0") <= byte <= ord("9")


@compiled(INT(types.uint8), inline=True)
def hex_digit(byte):
    """The value of a hex digit, or -1."""
    if is_digit(byte):
        return np.int64(byte) - ord("0")
    lower = np.int64(byte | 0x20)
    return lower - ord("a") + 10 if ord("a") <= lower <= ord("f") else -1


@compiled(INT(OUT, INT, INT, INT), inline=True)
def put(out, to, value, size):
    """Write an integer of so many bytes."""
    for i in range(size):
        out[U(to + i)] = (value >> (8 * (size - 1 - i))) & 0xFF
    return to + size


@compiled(INT(OUT, INT, INT, INT), inline=True)
def put_length(out, to, size, first):
    """Write the first byte that says how wide a length is, and the length."""
    width = 0 if size < 1 << 8 else (1 if size < 1 << 16 else 2)
    out[U(to)] = first + width
    return put(out, to + 1, size, 1 << width)


@compiled(INT(BYTES, INT, INT, OUT, INT), inline=True)
def put_text(data, at, size, out, to):
    """Write text that is here already."""
    if size < 1 << 5:
        out[U(to)] = 0xA0 | size
        to += 1
    else:
        to = put_length(out, to, size, 0xD9)
    for i in range(size):
        out[U(to + i)] = data[U(at + i)]
    return to + size


@compiled(INT(BYTES, INT, INT, INT, OUT, INT), inline=True)
def put_hex(data, at, size, length, out, to):
    """Write so many bytes given as hex digits, two a byte, and dashes elsewhere; or -1."""
    to = put_length(out, to, length, 0xC4)
    end = at + size
    for i in range(length):
        if at < end and data[U(at)] == ord("-"):
            at += 1
        if end - at < 2:
            return -1
        high, low = hex_digit(data[U(at)]), hex_digit(data[U(at + 1)])
        if high | low < 0:
            return -1
        out[U(to + i)] = high << 4 | low
        at += 2
    return to + length if at == end else -1


@compiled(INT(INT, INT), inline=True)
def _width(value, bits):
    """How often the bytes of an integer are doubled until it fits, with so many bits in one."""
    width = 0
    while width < 3 and value >> (bits + 8 * ((1 << width) - 1)):
        width += 1
    return width


@compiled(INT(INT, OUT, INT), inline=True)
def put_integer(value, out, to):
    """Write an integer in its shortest form."""
    if value >= 0:
        if value < 1 << 7:
            out[U(to)] = value
            return to + 1
        width = _width(value, 8)
        out[U(to)] = 0xCC + width
    else:
        if value >= -(1 << 5):
            out[U(to)] = value & 0xFF
            return to + 1
        width = _width(-value - 1, 7)
        out[U(to)] = 0xD0 + width
    return put(out, to + 1, value, 1 << width)
