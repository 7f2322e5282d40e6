"""Keccak-256 of many messages side by side, compiled by numba: eight lanes of one permutation.

The compiler turns the loops over lanes into vector instructions of whatever processor it runs on.
The interpreter is unlocked meanwhile. Loaded once it is needed: see `app.compiling`.

A state is 25 words of 64 bits for each lane, word `k` of lane `i` at `k * 8 + i`; words are little-
endian (FIPS 202, section 3; the padding of Keccak is 0x01 where SHA-3 has 0x06).
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import types

from app.compiling import compiled
from app.model.values import BYTES

if not np.little_endian:
    raise ImportError("the words of a state are read as they are in memory")

_COUNTS: Final = types.int64[::1]
WORDS: Final = types.uint64[::1]
_LANES: Final = 8
_STATE_WORDS: Final = 25
RATE_BYTES: Final = 136
RATE_WORDS: Final = 17
_HASH_WORDS: Final = 4
_CONSTANTS: Final = np.array(
    [
        0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000,
        0x000000000000808B, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
        0x000000000000008A, 0x0000000000000088, 0x0000000080008009, 0x000000008000000A,
        0x000000008000808B, 0x800000000000008B, 0x8000000000008089, 0x8000000000008003,
        0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
        0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
    ],
    np.uint64,
)  # fmt: skip
_PAD: Final = np.uint64(0x01)
_LAST_BIT: Final = np.uint64(1 << 63)
_WORD_BITS: Final = np.uint64(64)
_EIGHT: Final = np.uint64(8)
_SHIFT_TO_NEXT: Final = np.uint64(56)
_NARROW: Final = 0x80
_UINT8: Final = 0xCC


@compiled(types.uint64(types.uint64, types.uint64))
def _rotated(word, count):
    return (word << count) | (word >> (_WORD_BITS - count))


@compiled(types.void(WORDS))
def _permute(s):
    """Keccak-f[1600] on all lanes: theta, rho and pi, then chi and iota, 24 times."""
    for number in range(24):
        constant = _CONSTANTS[number]
        for i in range(_LANES):
            c0 = s[0 + i] ^ s[40 + i] ^ s[80 + i] ^ s[120 + i] ^ s[160 + i]
            c1 = s[8 + i] ^ s[48 + i] ^ s[88 + i] ^ s[128 + i] ^ s[168 + i]
            c2 = s[16 + i] ^ s[56 + i] ^ s[96 + i] ^ s[136 + i] ^ s[176 + i]
            c3 = s[24 + i] ^ s[64 + i] ^ s[104 + i] ^ s[144 + i] ^ s[184 + i]
            c4 = s[32 + i] ^ s[72 + i] ^ s[112 + i] ^ s[152 + i] ^ s[192 + i]
            d0 = c4 ^ _rotated(c1, 1)
            d1 = c0 ^ _rotated(c2, 1)
            d2 = c1 ^ _rotated(c3, 1)
            d3 = c2 ^ _rotated(c4, 1)
            d4 = c3 ^ _rotated(c0, 1)
            b0 = s[0 + i] ^ d0
            b10 = _rotated(s[8 + i] ^ d1, 1)
            b20 = _rotated(s[16 + i] ^ d2, 62)
            b5 = _rotated(s[24 + i] ^ d3, 28)
            b15 = _rotated(s[32 + i] ^ d4, 27)
            b16 = _rotated(s[40 + i] ^ d0, 36)
            b1 = _rotated(s[48 + i] ^ d1, 44)
            b11 = _rotated(s[56 + i] ^ d2, 6)
            b21 = _rotated(s[64 + i] ^ d3, 55)
            b6 = _rotated(s[72 + i] ^ d4, 20)
            b7 = _rotated(s[80 + i] ^ d0, 3)
            b17 = _rotated(s[88 + i] ^ d1, 10)
            b2 = _rotated(s[96 + i] ^ d2, 43)
            b12 = _rotated(s[104 + i] ^ d3, 25)
            b22 = _rotated(s[112 + i] ^ d4, 39)
            b23 = _rotated(s[120 + i] ^ d0, 41)
            b8 = _rotated(s[128 + i] ^ d1, 45)
            b18 = _rotated(s[136 + i] ^ d2, 15)
            b3 = _rotated(s[144 + i] ^ d3, 21)
            b13 = _rotated(s[152 + i] ^ d4, 8)
            b14 = _rotated(s[160 + i] ^ d0, 18)
            b24 = _rotated(s[168 + i] ^ d1, 2)
            b9 = _rotated(s[176 + i] ^ d2, 61)
            b19 = _rotated(s[184 + i] ^ d3, 56)
            b4 = _rotated(s[192 + i] ^ d4, 14)
            s[0 + i] = b0 ^ (~b1 & b2) ^ constant
            s[8 + i] = b1 ^ (~b2 & b3)
            s[16 + i] = b2 ^ (~b3 & b4)
            s[24 + i] = b3 ^ (~b4 & b0)
            s[32 + i] = b4 ^ (~b0 & b1)
            s[40 + i] = b5 ^ (~b6 & b7)
            s[48 + i] = b6 ^ (~b7 & b8)
            s[56 + i] = b7 ^ (~b8 & b9)
            s[64 + i] = b8 ^ (~b9 & b5)
            s[72 + i] = b9 ^ (~b5 & b6)
            s[80 + i] = b10 ^ (~b11 & b12)
            s[88 + i] = b11 ^ (~b12 & b13)
            s[96 + i] = b12 ^ (~b13 & b14)
            s[104 + i] = b13 ^ (~b14 & b10)
            s[112 + i] = b14 ^ (~b10 & b11)
            s[120 + i] = b15 ^ (~b16 & b17)
            s[128 + i] = b16 ^ (~b17 & b18)
            s[136 + i] = b17 ^ (~b18 & b19)
            s[144 + i] = b18 ^ (~b19 & b15)
            s[152 + i] = b19 ^ (~b15 & b16)
            s[160 + i] = b20 ^ (~b21 & b22)
            s[168 + i] = b21 ^ (~b22 & b23)
            s[176 + i] = b22 ^ (~b23 & b24)
            s[184 + i] = b23 ^ (~b24 & b20)
            s[192 + i] = b24 ^ (~b20 & b21)


@compiled(WORDS(WORDS, types.int64[::1]))
def hash_padded(words, starts):
    """Hash padded messages: message `m` is the blocks from `starts[m]` up to `starts[m + 1]`."""
    count = len(starts) - 1
    hashes = np.empty(count * _HASH_WORDS, np.uint64)
    s = np.empty(_STATE_WORDS * _LANES, np.uint64)
    for first in range(0, count, _LANES):
        lanes = min(_LANES, count - first)
        longest = 0
        for lane in range(lanes):
            longest = max(longest, starts[first + lane + 1] - starts[first + lane])
        s[:] = 0
        for step in range(longest):
            for lane in range(lanes):
                block = starts[first + lane] + step
                if block < starts[first + lane + 1]:
                    for k in range(RATE_WORDS):
                        s[k * _LANES + lane] ^= words[block * RATE_WORDS + k]
            _permute(s)
            for lane in range(lanes):
                if starts[first + lane] + step + 1 == starts[first + lane + 1]:
                    for k in range(_HASH_WORDS):
                        hashes[(first + lane) * _HASH_WORDS + k] = s[k * _LANES + lane]
    return hashes


@compiled(types.int64(types.uint8[::1], types.int64, BYTES, types.int64))
def put_prefix(out, at, domain, length):
    """Put what is hashed before a payload of so many bytes; returns where that goes."""
    out[at : at + len(domain)] = domain
    at += len(domain)
    for byte in range(8):
        out[at + byte] = np.uint8(length >> (56 - 8 * byte))
    return at + 8


@compiled(types.void(types.uint8[::1], types.int64, types.int64))
def pad(out, end, limit):
    """Pad a message that ends at `end` up to the end of its last block."""
    out[end] = 0x01
    out[limit - 1] |= 0x80


@compiled(WORDS(BYTES, BYTES, _COUNTS))
def _hash_payloads(domain, joined, lengths):
    """`H(domain, payload)` of payloads that stand side by side; four words each."""
    count = len(lengths)
    starts = np.zeros(count + 1, np.int64)
    prefix = len(domain) + 8
    for m in range(count):
        starts[m + 1] = starts[m] + (prefix + lengths[m]) // RATE_BYTES + 1
    words = np.zeros(starts[count] * RATE_WORDS, np.uint64)
    out = words.view(np.uint8)
    source = 0
    for m in range(count):
        at = starts[m] * RATE_BYTES
        at = put_prefix(out, at, domain, lengths[m])
        out[at : at + lengths[m]] = joined[source : source + lengths[m]]
        source += lengths[m]
        pad(out, at + lengths[m], starts[m + 1] * RATE_BYTES)
    return hash_padded(words, starts)


@compiled(types.int64(types.int64))
def _array_head_bytes(length):
    return 1 if length < 16 else (3 if length < 1 << 16 else 5)


@compiled(types.int64(types.uint8[::1], types.int64, BYTES))
def put_integers(out, at, data):
    """A MessagePack array of the bytes as integers, each in its shortest form."""
    length = len(data)
    head = _array_head_bytes(length)
    if head == 1:
        out[at] = 0x90 | length
    else:
        out[at] = 0xDC if head == 3 else 0xDD
        for byte in range(1, head):
            out[at + byte] = (length >> (8 * (head - 1 - byte))) & 0xFF
    at += head
    for byte in data:
        # Without a branch, which no processor could predict; there is room for one byte more.
        out[at] = _UINT8
        at += byte >= _NARROW
        out[at] = byte
        at += 1
    return at


@compiled(WORDS(BYTES, BYTES, _COUNTS, _COUNTS, BYTES, _COUNTS))
def _hash_events(domain, shells, shell_lengths, cuts, joined, lengths):
    """`H(domain, event)` of events whose data is taken out of their encodings, the shells.

    In a shell an empty array, one byte at its `cut`, stands where the data goes as an array of
    integers.
    """
    count = len(lengths)
    sizes = np.empty(count, np.int64)
    starts = np.zeros(count + 1, np.int64)
    prefix = len(domain) + 8
    source = 0
    for m in range(count):
        size = shell_lengths[m] - 1 + _array_head_bytes(lengths[m]) + lengths[m]
        for byte in joined[source : source + lengths[m]]:
            size += byte >= _NARROW
        source += lengths[m]
        sizes[m] = size
        starts[m + 1] = starts[m] + (prefix + size) // RATE_BYTES + 1
    words = np.zeros(starts[count] * RATE_WORDS, np.uint64)
    out = words.view(np.uint8)
    source = shell = 0
    for m in range(count):
        at = starts[m] * RATE_BYTES
        at = put_prefix(out, at, domain, sizes[m])
        cut, end = cuts[m], shell_lengths[m]
        out[at : at + cut] = shells[shell : shell + cut]
        at = put_integers(out, at + cut, joined[source : source + lengths[m]])
        out[at : at + end - cut - 1] = shells[shell + cut + 1 : shell + end]
        pad(out, at + end - cut - 1, starts[m + 1] * RATE_BYTES)
        source += lengths[m]
        shell += end
    return hash_padded(words, starts)


@compiled(types.void(types.uint64, WORDS, types.int64, WORDS))
def _hash_short(prefix, source, size, hashes):
    """Hash `prefix`, one byte, before each `size` words, which fit one block."""
    count = len(hashes) // _HASH_WORDS
    s = np.empty(_STATE_WORDS * _LANES, np.uint64)
    for first in range(0, count, _LANES):
        lanes = min(_LANES, count - first)
        s[:] = 0
        for lane in range(lanes):
            carry = prefix
            for k in range(size):
                word = source[(first + lane) * size + k]
                s[k * _LANES + lane] = carry | (word << _EIGHT)
                carry = word >> _SHIFT_TO_NEXT
            s[size * _LANES + lane] = carry | (_PAD << _EIGHT)
            s[(RATE_WORDS - 1) * _LANES + lane] = _LAST_BIT
        _permute(s)
        for lane in range(lanes):
            for k in range(_HASH_WORDS):
                hashes[(first + lane) * _HASH_WORDS + k] = s[k * _LANES + lane]


@compiled(WORDS(BYTES, types.int64, BYTES))
def _append_leaves(leaves, size, peaks):
    """The nodes that an append to a log of `size` leaves makes complete, four words each.

    `leaves` are 32 bytes each, `peaks` the log's from the smallest on. Level by level, from the
    leaves' on: the place of the old peak, which is filled where the level has one, then the new
    nodes (`app.chain.merkle` says which they are).
    """
    after = size + len(leaves) // (8 * _HASH_WORDS)
    total, level = 0, 0
    while after >> level:
        total += 1 + (after >> level) - (size >> level)
        level += 1
    nodes = np.zeros(total * _HASH_WORDS, np.uint64)
    data = np.empty(len(leaves) // 8, np.uint64)
    data.view(np.uint8)[:] = leaves
    _hash_short(np.uint64(0), data, 4, nodes[_HASH_WORDS : _HASH_WORDS + len(data)])
    old_peaks = np.empty(len(peaks) // 8, np.uint64)
    old_peaks.view(np.uint8)[:] = peaks
    region = peak = level = 0
    while after >> level:
        first = region + _HASH_WORDS
        behind = first + _HASH_WORDS * ((after >> level) - (size >> level))
        if (size >> level) & 1:
            nodes[region:first] = old_peaks[peak : peak + _HASH_WORDS]
            peak += _HASH_WORDS
            first = region
        level += 1
        parents = (after >> level) - (size >> level)
        target = behind + _HASH_WORDS
        if parents:
            hashes = nodes[target : target + _HASH_WORDS * parents]
            _hash_short(np.uint64(1), nodes[first:behind], 2 * _HASH_WORDS, hashes)
        region = behind
    return nodes


def hash_payloads(domain: bytes, payloads: Sequence[bytes]) -> bytes:
    """`H(domain, payload)` of each, side by side."""
    return _out(_hash_payloads(_in(domain), _in(b"".join(payloads)), _lengths(payloads)))


def hash_events(
    domain: bytes, shells: Sequence[bytes], cuts: Sequence[int], data: Sequence[bytes]
) -> bytes:
    """`H(domain, event)` of each, side by side: `data` goes into the shells at `cuts`."""
    hashes = _hash_events(
        _in(domain),
        _in(b"".join(shells)),
        _lengths(shells),
        np.array(cuts, np.int64),
        _in(b"".join(data)),
        _lengths(data),
    )
    return _out(hashes)


def append_leaves(leaves: Sequence[bytes], size: int, peaks: Sequence[bytes]) -> bytes:
    """The new nodes of all levels, as `_append_leaves` lays them out; `peaks` largest first."""
    return _out(_append_leaves(_in(b"".join(leaves)), size, _in(b"".join(reversed(peaks)))))


def _in(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)


def _lengths(parts: Sequence[bytes]) -> Any:
    return np.array([len(part) for part in parts], np.int64)


def _out(words: Any) -> bytes:
    data: bytes = words.tobytes()
    return data
