"""What a block takes of packed entries, found where it lies in them, compiled by numba.

    gather(array, at, count)  ->  Gathered  ->  types, identities, event hashes

The entries are packed one after another in MessagePack, and known to be valid: none is decoded to
be hashed. Each is passed over once, which notes where in the data each thing lies; what is hashed
is then put together from there, in lanes (`app.chain.lanes`), the interpreter unlocked.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numba import types

from app.chain.lanes import (
    RATE_BYTES,
    RATE_WORDS,
    WORDS,
    hash_padded,
    pad,
    put_integers,
    put_prefix,
)
from app.compiling import compiled
from app.model.recognition import COLUMNS, NAME, NAME_BYTES, TABLE, field, name_words
from app.model.values import (
    BYTES,
    INT,
    OUT,
    U,
    behind,
    binary,
    hex_digit,
    integer,
    list_of,
    map_of,
    put_integer,
    put_text,
    text,
)

# Columns of an entry: where its data and its type begin and how long they are, when it was
# received, and its events' rows, from the first on.
_DATA: Final = 0
_DATA_BYTES: Final = 1
_TYPE: Final = 2
_TYPE_BYTES: Final = 3
_RECEIVED: Final = 4
_FIRST_EVENT: Final = 5
_EVENTS: Final = 6
_ENTRY_COLUMNS: Final = 7
# Columns of an event: where its parts begin and how long they are, -1 where there is none.
_TOPIC: Final = 0
_TOPIC_BYTES: Final = 1
_KEY: Final = 2
_KEY_BYTES: Final = 3
_PAYLOAD: Final = 4
_PAYLOAD_BYTES: Final = 5
_KIND: Final = 6
_KIND_BYTES: Final = 7
_SEQUENCE: Final = 8
_HAS_SEQUENCE: Final = 9
_EVENT_COLUMNS: Final = 10

# Fields that count, by their rows in the tables of names below. What is text or binary has its two
# columns in the same order.
_COMMAND_DATA: Final = 0
_COMMAND_TYPE: Final = 1
_RECEIVED_TS_MS: Final = 2
_EVENT_LIST: Final = 3
_IDENTITY_HASH: Final = 4
_EVENT_DATA: Final = 2
_L2_SEQUENCE: Final = 4

_ROWS: Final = types.int64[:, ::1]
_COUNTS: Final = types.int64[::1]
_UUID_BYTES: Final = 16
_HASH_BYTES: Final = 32
# Of three texts, the array of integers and the number between them.
_MOST_HEADERS_BYTES: Final = 3 * 5 + 5 + 9


def _names(*names: str) -> Any:
    """A row for each name, as `app.model.recognition.field` seeks it."""
    rows = np.zeros((len(names), COLUMNS), np.int64)
    for row, name in zip(rows, names, strict=True):
        row[NAME_BYTES] = len(name)
        row[NAME:] = name_words(name)
    rows.flags.writeable = False
    return rows


_OF_ENTRY: Final = _names(
    "command_data", "command_type", "received_ts_ms", "events", "command_identity_hash"
)
_OF_EVENT: Final = _names("event_topic", "event_key", "event_data", "event_type", "l2_sequence")
# None is shorter: a map of the three names that must be there, and a byte of each value.
_LEAST_EVENT_BYTES: Final = 1 + len("event_topicevent_dataevent_type") + 3 + 3


@compiled(INT(BYTES, INT, OUT, INT), inline=True)
def _take_hash(data, at, hashes, to):
    """Take down a hash, in 32 bytes or as hex digits behind `0x`; where it ends, or -1."""
    content, size = binary(data, at)
    if content >= 0:
        if size != _HASH_BYTES:
            return -1
        for i in range(_HASH_BYTES):
            hashes[U(to + i)] = data[U(content + i)]
        return content + size
    content, size = text(data, at)
    if content < 0 or size != 2 + 2 * _HASH_BYTES:
        return -1
    for i in range(_HASH_BYTES):
        digits = content + 2 + 2 * i
        hashes[U(to + i)] = hex_digit(data[U(digits)]) << 4 | hex_digit(data[U(digits + 1)])
    return content + size


@compiled(INT(BYTES, INT, types.boolean, _ROWS, INT, INT), inline=True)
def _note(data, at, is_binary, rows, row, column):
    """Note where text lies, or binary data, in this column and the next; where it ends, or -1."""
    at, size = binary(data, at) if is_binary else text(data, at)
    rows[U(row), U(column)] = at
    rows[U(row), U(column + 1)] = size
    return at + size if at >= 0 else -1


@compiled(INT(BYTES, INT, TABLE, _ROWS, INT), inline=True)
def _gather_event(data, at, names, events, number):
    """Note where the parts of an event lie; where it ends, or -1."""
    at, fields = map_of(data, at)
    for column in range(_EVENT_COLUMNS):
        events[U(number), U(column)] = 0
    events[U(number), _KEY_BYTES] = -1
    for _ in range(fields):
        at, size = text(data, at)
        if at < 0:
            return -1
        row = field(data, at, size, names, 0, len(names), 0)
        at += size
        if at < len(data) and data[U(at)] == 0xC0:
            at += 1
        elif row == _L2_SEQUENCE:
            at, events[U(number), _SEQUENCE] = integer(data, at)
            events[U(number), _HAS_SEQUENCE] = 1
        elif row >= 0:
            at = _note(data, at, row == _EVENT_DATA, events, number, 2 * row)
        else:
            return -1
        if at < 0:
            return -1
    return at


@compiled(INT(BYTES, INT, TABLE, TABLE, OUT, INT, _ROWS, _ROWS))
def _gather_entry(data, at, entry_names, event_names, sent, entry, entries, events):
    """Note where what counts of an entry lies; where it ends, or -1.

    `sent` gets its identity hash, if there is one.
    """
    at, fields = map_of(data, at)
    for _ in range(fields):
        at, size = text(data, at)
        if at < 0:
            return -1
        row = field(data, at, size, entry_names, 0, len(entry_names), 0)
        at += size
        if at < len(data) and data[U(at)] == 0xC0:
            at += 1
        elif row in (_COMMAND_DATA, _COMMAND_TYPE):
            at = _note(data, at, row == _COMMAND_DATA, entries, entry, 2 * row)
        elif row == _RECEIVED_TS_MS:
            at, entries[U(entry), _RECEIVED] = integer(data, at)
        elif row == _IDENTITY_HASH:
            at = _take_hash(data, at, sent, _HASH_BYTES * entry)
        elif row == _EVENT_LIST:
            at, items = list_of(data, at)
            number = entries[U(entry), _FIRST_EVENT]
            if at < 0 or items > len(events) - number:
                return -1
            entries[U(entry), _EVENTS] = items
            for step in range(items):
                at = _gather_event(data, at, event_names, events, number + step)
                if at < 0:
                    return -1
        else:
            at = behind(data, at)
        if at < 0:
            return -1
    return at


@compiled(INT(BYTES, INT, TABLE, TABLE, OUT, _ROWS, _ROWS))
def _gather(data, at, entry_names, event_names, sent, entries, events):
    """Note where what counts of entries lies; where the last of them ends, or -1."""
    number = np.int64(0)
    for entry in range(len(entries)):
        for column in range(_ENTRY_COLUMNS):
            entries[U(entry), U(column)] = 0
        entries[U(entry), _FIRST_EVENT] = number
        at = _gather_entry(data, at, entry_names, event_names, sent, entry, entries, events)
        if at < 0:
            return -1
        number += entries[U(entry), _EVENTS]
    return at


@compiled(types.void(BYTES, _ROWS, OUT))
def _join_types(data, entries, out):
    """The types of entries, each with a NUL behind it."""
    to = 0
    for entry in range(len(entries)):
        start = entries[entry, _TYPE]
        for i in range(entries[entry, _TYPE_BYTES]):
            out[to] = data[start + i]
            to += 1
        out[to] = 0
        to += 1


@compiled(types.boolean(BYTES, INT), inline=True)
def _is_sent(sent, entry):
    """Whether an identity hash is anything but zeros."""
    any_bits = np.uint8(0)
    for i in range(_HASH_BYTES):
        any_bits |= sent[U(_HASH_BYTES * entry + i)]
    return any_bits != 0


@compiled(WORDS(BYTES, BYTES, BYTES, BYTES, _ROWS, _COUNTS))
def _hash_identities(domain, data, uuids, sent, entries, chosen):
    """The identity hashes of the `chosen` entries, those that were sent or else the derived ones.

    `uuids` are of these alone. Four words each.
    """
    count = len(chosen)
    starts = np.zeros(count + 1, np.int64)
    around = len(domain) + 8 + _UUID_BYTES
    for m in range(count):
        blocks = 0
        if not _is_sent(sent, chosen[m]):
            blocks = (around + entries[chosen[m], _DATA_BYTES]) // RATE_BYTES + 1
        starts[m + 1] = starts[m] + blocks
    words = np.zeros(starts[count] * RATE_WORDS, np.uint64)
    out = words.view(np.uint8)
    for m in range(count):
        if starts[m + 1] == starts[m]:
            continue
        start, size = entries[chosen[m], _DATA], entries[chosen[m], _DATA_BYTES]
        at = put_prefix(out, starts[m] * RATE_BYTES, domain, _UUID_BYTES + size)
        for i in range(_UUID_BYTES):
            out[U(at + i)] = uuids[U(_UUID_BYTES * m + i)]
        at += _UUID_BYTES
        for i in range(size):
            out[U(at + i)] = data[U(start + i)]
        pad(out, at + size, starts[m + 1] * RATE_BYTES)
    hashes = hash_padded(words, starts)
    taken = hashes.view(np.uint8)
    for m in range(count):
        if starts[m + 1] == starts[m]:
            first = _HASH_BYTES * chosen[m]
            taken[_HASH_BYTES * m : _HASH_BYTES * (m + 1)] = sent[first : first + _HASH_BYTES]
    return hashes


@compiled(INT(BYTES, INT, INT, OUT, INT), inline=True)
def _put_shell(shell, start, end, out, to):
    """Put what stands around the parts of an event in any encoding of one."""
    for i in range(start, end):
        out[U(to)] = shell[U(i)]
        to += 1
    return to


@compiled(INT(OUT, INT), inline=True)
def _put_nil(out, to):
    out[U(to)] = 0xC0
    return to + 1


@compiled(INT(BYTES, _COUNTS, BYTES, _ROWS, INT, OUT, INT))
def _put_event(shell, cuts, data, events, number, out, to):
    """Put the encoding of an event that is hashed; returns where it ends."""
    to = _put_shell(shell, 0, cuts[0], out, to)
    to = put_text(data, events[number, _TOPIC], events[number, _TOPIC_BYTES], out, to)
    to = _put_shell(shell, cuts[0] + 1, cuts[1], out, to)
    if events[number, _KEY_BYTES] >= 0:
        to = put_text(data, events[number, _KEY], events[number, _KEY_BYTES], out, to)
    else:
        to = _put_nil(out, to)
    to = _put_shell(shell, cuts[1] + 1, cuts[2], out, to)
    start = events[number, _PAYLOAD]
    to = put_integers(out, to, data[start : start + events[number, _PAYLOAD_BYTES]])
    to = _put_shell(shell, cuts[2] + 1, cuts[3], out, to)
    if events[number, _HAS_SEQUENCE]:
        to = put_integer(events[number, _SEQUENCE], out, to)
    else:
        to = _put_nil(out, to)
    to = _put_shell(shell, cuts[3] + 1, cuts[4], out, to)
    return put_text(data, events[number, _KIND], events[number, _KIND_BYTES], out, to)


@compiled(WORDS(BYTES, BYTES, _COUNTS, BYTES, _ROWS, _ROWS, _COUNTS))
def _hash_events(domain, shell, cuts, data, entries, events, chosen):
    """`H(domain, event)` of the events of the `chosen` entries; four words each.

    `shell` is the encoding of an event of nothing, whose values, of one byte each, are at `cuts`.
    """
    count = blocks = 0
    prefix = len(domain) + 8
    for entry in chosen:
        first = entries[entry, _FIRST_EVENT]
        for number in range(first, first + entries[entry, _EVENTS]):
            texts = events[number, _TOPIC_BYTES] + events[number, _KIND_BYTES]
            texts += max(events[number, _KEY_BYTES], 0)
            most = len(shell) + texts + 2 * events[number, _PAYLOAD_BYTES] + _MOST_HEADERS_BYTES
            blocks += (prefix + most) // RATE_BYTES + 1
            count += 1
    starts = np.zeros(count + 1, np.int64)
    words = np.zeros(blocks * RATE_WORDS, np.uint64)
    out = words.view(np.uint8)
    m = 0
    for entry in chosen:
        first = entries[entry, _FIRST_EVENT]
        for number in range(first, first + entries[entry, _EVENTS]):
            start = starts[m] * RATE_BYTES
            end = _put_event(shell, cuts, data, events, number, out, start + prefix)
            put_prefix(out, start, domain, end - start - prefix)
            starts[m + 1] = starts[m] + (end - start) // RATE_BYTES + 1
            pad(out, end, starts[m + 1] * RATE_BYTES)
            m += 1
    return hash_padded(words, starts)


class Gathered:
    """What a block takes of `count` packed entries, by their indices."""

    def __init__(self, data: Any, sent: Any, entries: Any, events: Any) -> None:
        self._data = data
        self._sent = sent
        self._entries = entries
        self._events = events

    @property
    def last_received_ms(self) -> int:
        """`received_ts_ms` of the last entry."""
        return int(self._entries[-1, _RECEIVED])

    def types(self) -> list[str | None]:
        """Each entry's `command_type`."""
        out = np.empty(len(self._entries) + int(self._entries[:, _TYPE_BYTES].sum()), np.uint8)
        _join_types(self._data, self._entries, out)
        return [name or None for name in out.tobytes().decode("latin-1").split("\0")[:-1]]

    def identities(self, domain: bytes, uuids: bytes, chosen: Sequence[int]) -> bytes:
        """The identity hashes of the `chosen` entries, whose `uuids` are these, side by side."""
        arguments = self._data, _in(uuids), self._sent, self._entries, np.array(chosen, np.int64)
        data: bytes = _hash_identities(_in(domain), *arguments).tobytes()
        return data

    def event_hashes(
        self, domain: bytes, shell: bytes, cuts: Sequence[int], chosen: Sequence[int]
    ) -> bytes:
        """`H(domain, event)` of the events of the `chosen` entries, side by side.

        `shell` is the encoding of an event of nothing, in which the values of one byte each that
        are at `cuts` give way to those of the event.
        """
        hashes = _hash_events(
            _in(domain),
            _in(shell),
            np.array(cuts, np.int64),
            self._data,
            self._entries,
            self._events,
            np.array(chosen, np.int64),
        )
        data: bytes = hashes.tobytes()
        return data


def gather(array: memoryview, at: int, count: int) -> Gathered | None:
    """Look through the `count` entries of an array, the first of which begins at `at`.

    None where they are not what they are said to be.
    """
    if not 0 < count < len(array):
        return None
    data = np.frombuffer(array, np.uint8)
    data.flags.writeable = False
    sent = np.zeros(count * _HASH_BYTES, np.uint8)
    entries = np.empty((count, _ENTRY_COLUMNS), np.int64)
    events = np.empty((len(data) // _LEAST_EVENT_BYTES, _EVENT_COLUMNS), np.int64)
    if _gather(data, at, _OF_ENTRY, _OF_EVENT, sent, entries, events) != len(data):
        return None
    sent.flags.writeable = False
    return Gathered(data, sent, entries, events)


def _in(data: bytes) -> Any:
    return np.frombuffer(data, np.uint8)
