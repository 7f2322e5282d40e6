"""What a request body would cost once it is decoded, told before it is.

One byte of a body can become a hundred of memory: an empty map is one byte in MessagePack, and an
object of 64 bytes in a list when decoded. Text with one character beyond U+FFFF takes four bytes a
character, and its UTF-8 besides. `check_weight` refuses what would take, with the body and its
record, more than four times `MAX_BODY_BYTES`. Short bodies, as most are, could not, and pass
unseen; of the others, what may be in `symbols`, text and large entries is weighed.
"""

import re
from collections.abc import Collection, Iterator
from math import ceil
from typing import Final

import msgpack
import msgspec
from msgspec import Raw, Struct

from app.errors import InvalidEntries, TooManyEntries, TooManyValues

# Each divides MAX_BODY_BYTES; what is no larger is light. A byte takes a hundred at most.
_LIGHT_BODY: Final = 32
_LIGHT_ENTRY: Final = 1024
# How often there is what a body holds, with what the server keeps of it: as it came, which its
# record takes as it lies, and decoded; JSON, instead of as it came, encoded, and while it is more.
_COPIES: Final = 2.5
_JSON_COPIES: Final = 3.0
# What may be used: 4 × MAX_BODY_BYTES less this part of one, for all that is not counted here.
_MARGIN: Final = 4
# What one takes besides its encoding: a value of `symbols` at most, keys included; one in JSON that
# is not in there; an entry, with what a block takes for it.
_VALUE_BYTES: Final = 96
_JSON_VALUE_BYTES: Final = 56
_ENTRY_BYTES: Final = 1120
# What else one takes in JSON, where its values have been counted; and a text outside of `symbols`.
_JSON_ENTRY_BYTES: Final = 820
_FIELD_BYTES: Final = 16
# The parts that an entry may hold many of: a key that each has, and what one takes besides as much
# as its encoding, in which every field is named.
_EVENT: Final = b"event_topic"
_PARTS: Final = (
    (_EVENT, 210),
    (b"directive_id", 470),
    (b"taker_ledger_delta", 400),
    (b"balance_update_seq", 340),
)
# What a block takes for an event, until its hashes are in the store.
_LEAF_BYTES: Final = 640
# Text that is not ASCII takes this much more, and for each byte of it as much more again as the
# second number says: up to U+FFFF two bytes a character and its UTF-8, beyond it four.
_TEXT_BYTES: Final = 24
_BROAD: Final = 2
_WIDE: Final = 4
_WIDE_LEADS: Final = (b"\xf0", b"\xf1", b"\xf2", b"\xf3", b"\xf4")
# Longer text is allowed nowhere; for the key of an unknown field the message is as large, and more.
_LONG_TEXT_BYTES: Final = 4096
_LONG: Final = 3
_TEXT_MOST: Final = _WIDE * _LONG
# As much as a map header, the key `entries` and a list header take, in any spelling.
_OPENING_BYTES: Final = 24
_ARRAY_OF_MANY: Final = b"\xdd\xff\xff\xff\xff"
_WEIGHED_TIMES: Final = 8
_EMPTY: Final = b"\x80\x90\xc0\xc2\xc3"
_ALONE: Final = re.compile(rb"[\x00-\x80\x90\xc0\xc2\xc3\xe0-\xff]+")
_JSON_TEXT: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"?', re.DOTALL)
_JSON_WIDE: Final = re.compile(rb"\\u[dD][89abAB]")


class _Digest(Struct, frozen=True, gc=False):
    symbols: Raw = Raw()


class _Event(Struct, gc=False):
    event_topic: Raw = Raw()
    event_key: Raw = Raw()
    event_type: Raw = Raw()


class _OutboxAppend(Struct, gc=False):
    directive_id: Raw = Raw()
    action_key: Raw = Raw()
    idempotency_key: Raw = Raw()


class _BalanceUpdate(Struct, gc=False):
    reason: Raw = Raw()
    reference_id: Raw = Raw()


class _Withdrawal(Struct, gc=False):
    request_id: Raw = Raw()


class _Outlined(Struct, gc=False):
    """Of an entry, what may hold any number of values of any kind, and what may hold text."""

    command_type: Raw = Raw()
    pre_digest: _Digest = _Digest()
    post_digest: _Digest = _Digest()
    events: tuple[_Event, ...] = ()
    outbox_appends: tuple[_OutboxAppend, ...] = ()
    cash_withdrawal_side_effect: _Withdrawal | None = None
    balance_updates: tuple[_BalanceUpdate, ...] = ()

    def most_bytes(self) -> int:
        """What it may take, told from lengths alone."""
        symbols_bytes = len(self.pre_digest.symbols) + len(self.post_digest.symbols)
        return symbols_bytes * _VALUE_BYTES + sum(map(len, self._texts())) * _TEXT_MOST

    def weigh(self, limit_bytes: int) -> int:
        """What it takes; it ends beyond `limit_bytes`."""
        symbols = b"".join((self.pre_digest.symbols, self.post_digest.symbols))
        texts = b"".join(self._texts())
        return _weigh_all(symbols, limit_bytes, _VALUE_BYTES) + _weigh_all(
            texts, limit_bytes, _FIELD_BYTES
        )

    def _texts(self) -> Iterator[Raw]:
        yield self.command_type
        for event in self.events:
            yield from (event.event_topic, event.event_key, event.event_type)
        for append in self.outbox_appends:
            yield from (append.directive_id, append.action_key, append.idempotency_key)
        if self.cash_withdrawal_side_effect is not None:
            yield self.cash_withdrawal_side_effect.request_id
        for update in self.balance_updates:
            yield from (update.reason, update.reference_id)


class _JsonOutlined(Struct, gc=False):
    pre_digest: _Digest = _Digest()
    post_digest: _Digest = _Digest()


class _JsonOutline(Struct):
    entries: list[_JsonOutlined]


class _Entries(Struct):
    entries: list[Raw]


_outlined: Final = msgspec.msgpack.Decoder(_Outlined)
_entries: Final = msgspec.msgpack.Decoder(_Entries)
_json_outline: Final = msgspec.json.Decoder(_JsonOutline)
_json_entries: Final = msgspec.json.Decoder(_Entries)
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def light_bytes(max_body_bytes: int) -> int:
    """How long a light body may be."""
    return max_body_bytes // _LIGHT_BODY


def is_light(body: bytes | bytearray, max_body_bytes: int) -> bool:
    """Whether a body is so short that it can't be too large in memory: `check_weight` is at once.

    Else it may take a tenth of a second, and belongs in a thread of its own.
    """
    return len(body) <= light_bytes(max_body_bytes)


def check_weight(
    body: bytes | bytearray,
    *,
    json: bool,
    max_body_bytes: int,
    max_entries: int,
    block_words: Collection[bytes] = (),
) -> None:
    """Refuse a body that would be many times as large in memory.

    Everything in a body with one of `block_words` is taken for a part of a block.
    What else may be wrong with it is left to the decoder. Raises `TooManyEntries`, `TooManyValues`,
    or `InvalidEntries` for MessagePack of other keys than `entries`.
    """
    if is_light(body, max_body_bytes):
        return
    copies_bytes = int(len(body) * (_JSON_COPIES if json else _COPIES))
    room = _Room(4 * max_body_bytes - max_body_bytes // _MARGIN - copies_bytes)
    if any(word in body for word in block_words):
        room.take(body.count(_EVENT) * _LEAF_BYTES)
    if json:
        _check_json(body, room, max_body_bytes)
        return
    count = _announced_entries(body)
    if count > max_entries:
        raise TooManyEntries(f"{count} entries; at most {max_entries} are allowed")
    room.take(count * _ENTRY_BYTES)
    room.take(sum(body.count(key) * size_bytes for key, size_bytes in _PARTS))
    raws = _entries_of(body, _entries)
    room.take(_weigh_large(raws, room.left_bytes, max_body_bytes // _LIGHT_ENTRY))
    try:
        # One after the other: all outlines together would be larger than what they tell about.
        if sum(_outlined.decode(raw).most_bytes() for raw in raws) > room.left_bytes:
            for raw in raws:
                room.take(_outlined.decode(raw).weigh(room.left_bytes))
    except _UNDECODABLE:
        # The decoder will find the fault too, but perhaps not before it has decoded the rest.
        room.take(weigh(body, room.left_bytes))


def _weigh_large(entries: list[Raw], limit_bytes: int, light_bytes: int) -> int:
    """What the heaviest entry takes: any value may be in a wrong place, or hidden behind another.

    It is there until that is noticed, or the other one of its key is read. Weighing them all must
    have an end too.
    """
    heaviest = total = 0
    for entry in entries:
        if total > limit_bytes * _WEIGHED_TIMES:
            break
        if len(entry) > light_bytes:
            size_bytes = weigh(entry, limit_bytes)
            heaviest = max(heaviest, size_bytes)
            total += size_bytes
    return max(heaviest, ceil(total / _WEIGHED_TIMES))


class _Room:
    """What a body may still take."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def take(self, size_bytes: int) -> None:
        """Raises `TooManyValues` when it is more than what is left."""
        if size_bytes > self.left_bytes:
            raise TooManyValues(
                "more values, or text of more wide characters, in one request than it may hold: "
                "they would take many times their size in memory; send it as several"
            )
        self.left_bytes -= size_bytes


def _entries_of(
    body: bytes | bytearray,
    decoder: "msgspec.msgpack.Decoder[_Entries] | msgspec.json.Decoder[_Entries]",
) -> list[Raw]:
    """The entries as they are; all of the body for one where it does not decode."""
    try:
        return decoder.decode(body).entries
    except _UNDECODABLE:
        return [Raw(body)]


def weigh(data: bytes | bytearray | Raw, limit_bytes: int, value_bytes: int = _VALUE_BYTES) -> int:
    """What the values of some MessagePack take decoded, keys included, besides their content.

    It ends beyond `limit_bytes`. Values of one byte, which an attack is made of, are counted by
    runs.
    """
    view = data if isinstance(data, bytes) else memoryview(data)
    size_bytes = at = 0
    left = 1
    while left and at < len(view) and size_bytes <= limit_bytes:
        first = view[at]
        at += 1
        left -= 1
        size_bytes += value_bytes
        if first < 0x80 or first >= 0xE0 or first in _EMPTY:
            if run := _ALONE.match(view, at, at + min(left, limit_bytes // value_bytes)):
                size_bytes += (run.end() - at) * value_bytes
                left -= run.end() - at
                at = run.end()
        elif first < 0xA0:
            left += first & 15 if first >= 0x90 else 2 * (first & 15)
        elif first < 0xC0:
            end = at + (first & 31)
            size_bytes += _text_bytes(bytes(view[at:end]))
            at = end
        else:
            length_bytes, rest = _LAYOUTS[first - 0xC0]
            length = int.from_bytes(view[at : at + length_bytes])
            at += length_bytes + rest
            if first < 0xDC:
                if first >= 0xD9:
                    size_bytes += _text_bytes(bytes(view[at : at + length]))
                at += length
            else:
                left += length if first < 0xDE else 2 * length
    return size_bytes


def _weigh_all(values: bytes, limit_bytes: int, value_bytes: int) -> int:
    """Likewise for values one after another."""
    return weigh(_ARRAY_OF_MANY + values, limit_bytes + value_bytes, value_bytes) - value_bytes


def _text_bytes(text: bytes, *, escaped: bool = False) -> int:
    """What a text takes besides as many bytes as its UTF-8, or its JSON if there are escapes."""
    if text.isascii() and not escaped:
        return 0
    wide = any(lead in text for lead in _WIDE_LEADS) or (escaped and _JSON_WIDE.search(text))
    size_bytes = len(text) * (_WIDE if wide else _BROAD)
    return _TEXT_BYTES + (size_bytes if len(text) <= _LONG_TEXT_BYTES else size_bytes * _LONG)


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


def _check_json(body: bytes | bytearray, room: _Room, max_body_bytes: int) -> None:
    """Each value but the first of a list or map has a comma before it; text may hold more."""
    room.take(_count(body, b",[{") * _JSON_VALUE_BYTES)
    if not body.isascii() or b"\\u" in body:
        for text in _JSON_TEXT.finditer(body):
            room.take(_text_bytes(text[1], escaped=b"\\u" in text[1]))
    light = max_body_bytes // _LIGHT_ENTRY
    large = [entry for entry in _entries_of(body, _json_entries) if len(entry) > light]
    room.take(max(map(_weigh_json, large), default=0))
    try:
        entries = _json_outline.decode(body).entries
    except _UNDECODABLE:
        room.take(_weigh_json(body))
        return
    room.take(len(entries) * _JSON_ENTRY_BYTES)
    symbols = [each.symbols for entry in entries for each in (entry.pre_digest, entry.post_digest)]
    room.take(_weigh_json(b"".join(symbols)))


def _weigh_json(data: bytes | bytearray | Raw) -> int:
    return _count(bytes(data), b",:[{") * _VALUE_BYTES


def _count(data: bytes | bytearray, signs: bytes) -> int:
    return sum(data.count(sign) for sign in signs)
