"""The framing and the payloads of WAL records. Pure: bytes in, values out (protocol, section 5).

A record is `u32 LE payload length ‖ u32 LE CRC-32C of the payload ‖ payload`. The payload is a
MessagePack map whose first two keys are `kind` and `offset`, the record's own logical offset.
"""

from collections.abc import Sequence
from re import DOTALL
from re import compile as compile_pattern
from struct import Struct as Layout
from typing import Final, NamedTuple
from uuid import UUID

import msgspec
from crc32c import crc32c
from msgspec import Raw, Struct

from app.chain.header import Delegation, Header, Roots
from app.errors import InvariantError
from app.model.codec import decode_hook
from app.model.entry import Entry
from app.model.packing import read_array_header
from app.model.unbounded import unbounded

FORMAT: Final = 1
FRAME_BYTES: Final = 8
# A length above this is damage, whatever the settings were when the record was written.
MAX_PAYLOAD_BYTES: Final = 1 << 30
_LARGE_BYTES: Final = 1 << 20

Part = bytearray | memoryview

_frame: Final = Layout("<II")
# msgspec decodes `Raw | None` as nil alone; nil is one of the things that `Raw` holds.


class Genesis(Struct, tag_field="kind", tag="genesis", kw_only=True, frozen=True):
    """The first record of every segment: whose log this is, and where its ids go on."""

    offset: int
    format: int = FORMAT
    wal_id: str
    environment: str
    created_ms: int
    first_command_id: int


class RawBatch(Struct, tag_field="kind", tag="batch", kw_only=True, gc=False):
    """A group commit with its commands left encoded: enough for recovery."""

    offset: int
    first_command_id: int
    commands: list[Raw]
    header: Header | None = None
    roots: Roots | None = None
    block_indices: list[int] | None = None
    authority: Delegation | None = None


class PackedBatch(Struct, tag_field="kind", tag="batch", kw_only=True, gc=False):
    """A group commit as it is written: `commands` is the array of all, packed already.

    It may also be the header alone, where `encode_batch` gets the packed commands.
    """

    offset: int
    first_command_id: int
    commands: Raw
    header: Header | None = None
    roots: Roots | None = None
    block_indices: list[int] | None = None
    authority: Delegation | None = None


class Batch(Struct, tag_field="kind", tag="batch", kw_only=True, gc=False):
    """A group commit, decoded: what replication reads."""

    offset: int
    first_command_id: int
    commands: list[Entry]
    header: Header | None = None
    roots: Roots | None = None
    block_indices: list[int] | None = None
    authority: Delegation | None = None


class _RequestUuid(Struct, gc=False):
    """The one field of a command that the duplicate index needs."""

    request_uuid: UUID


class KeyedBatch(Struct, tag_field="kind", tag="batch", kw_only=True, gc=False):
    """A group commit with the keys of its commands: what the duplicate index needs."""

    offset: int
    first_command_id: int
    commands: list[_RequestUuid]
    header: Header | None = None
    roots: Roots | None = None
    block_indices: list[int] | None = None
    authority: Delegation | None = None

    @property
    def keys(self) -> list[int]:
        """The `request_uuid`s as integers."""
        return [command.request_uuid.int for command in self.commands]


class Outline(NamedTuple):
    """The frame of a group commit: where it lies, the ids of how many commands, if it is a block.

    `is_block` is also true where it can't be told without decoding.
    """

    offset: int
    first_command_id: int
    entries: int
    is_block: bool


_encoder = msgspec.msgpack.Encoder()
_raw_decoder: Final[msgspec.msgpack.Decoder[Genesis | RawBatch]] = msgspec.msgpack.Decoder(
    Genesis | RawBatch
)
_decoder: Final[msgspec.msgpack.Decoder[Genesis | Batch]] = msgspec.msgpack.Decoder(
    Genesis | Batch, dec_hook=decode_hook
)
_entry_decoder: Final = msgspec.msgpack.Decoder(Entry, dec_hook=decode_hook)
_unbounded_decoder: Final = msgspec.msgpack.Decoder(unbounded(Entry), dec_hook=decode_hook)
_keyed_decoder: Final[msgspec.msgpack.Decoder[Genesis | KeyedBatch]] = msgspec.msgpack.Decoder(
    Genesis | KeyedBatch
)
_BLOCK_KEYS: Final = ["header", "roots", "block_indices", "authority"]
# All that comes before the commands, as the writer encodes it.
_UNSIGNED: Final = rb"([\x00-\x7f]|\xcc.|\xcd..|\xce.{4}|\xcf.{8})"
_OUTLINE: Final = compile_pattern(
    b"".join(
        [
            rb"([\x80-\x8f])",
            *(_encoder.encode(text) for text in ("kind", "batch", "offset")),
            _UNSIGNED,
            _encoder.encode("first_command_id"),
            _UNSIGNED,
            _encoder.encode("commands"),
        ]
    ),
    DOTALL,
)
_COMMANDS: Final = _encoder.encode("commands")
_BATCH_FIELDS: Final = bytes([0x80 | 4 + len(_BLOCK_KEYS)])
# How it ends when it is no block. What clients sent lies before; a block ends otherwise.
_NO_BLOCK: Final = b"".join(_encoder.encode(key) + b"\xc0" for key in _BLOCK_KEYS)


def encode_record(record: Genesis | PackedBatch | RawBatch) -> bytearray:
    """Frame `record`. Raises `InvariantError` when it is longer than any reader accepts."""
    buffer = bytearray(FRAME_BYTES)
    _encoder.encode_into(record, buffer, FRAME_BYTES)
    _fill_frame([buffer])
    return buffer


def encode_batch(record: PackedBatch, packed: Sequence[bytes | memoryview]) -> list[Part]:
    """Frame `record`, whose commands are `packed`, as parts that lie one after another.

    What is large of `packed` is a part of its own, not copied: as large a request would be in
    memory once more. Raises as `encode_record`.
    """
    buffer = bytearray(FRAME_BYTES)
    _encoder.encode_into(record, buffer, FRAME_BYTES)
    at = buffer.index(_COMMANDS) + len(_COMMANDS) + len(record.commands)
    parts: list[Part] = []
    small: list[bytearray | bytes | memoryview] = [buffer[:at]]
    for each in packed:
        if len(each) < _LARGE_BYTES:
            small.append(each)
        else:
            parts += (bytearray().join(small), memoryview(each))
            small = []
    parts.append(bytearray().join((*small, buffer[at:])))
    _fill_frame(parts)
    return parts


def _fill_frame(parts: Sequence[Part]) -> None:
    """Put the frame in front of a payload, where the first part has room for it."""
    length = sum(map(len, parts)) - FRAME_BYTES
    if length > MAX_PAYLOAD_BYTES:
        raise InvariantError(f"a record of {length} bytes; at most {MAX_PAYLOAD_BYTES} are allowed")
    with memoryview(parts[0]) as first:
        crc = _crc_of(first[FRAME_BYTES:], 0)
        for part in parts[1:]:
            crc = _crc_of(part, crc)
        _frame.pack_into(first, 0, length, crc)


def _crc_of(part: Part, crc: int) -> int:
    """Go on with a CRC; the interpreter stays locked where locking it again would take longer."""
    return crc32c(part, crc, -1 if len(part) >= _LARGE_BYTES else 0)


def raw_commands(bodies: Sequence[bytes]) -> list[Raw]:
    """Wrap canonical encodings, so that the record embeds them as they are."""
    return [Raw(body) for body in bodies]


def unpack_frame(header: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Split the 8 bytes before a payload into its length and CRC."""
    return _frame.unpack(header)


def crc_matches(payload: bytes | bytearray | memoryview, crc: int) -> bool:
    """Whether the payload is what was framed."""
    return crc32c(payload) == crc


def decode_raw(payload: bytes | bytearray | memoryview) -> Genesis | RawBatch:
    """Decode a payload, commands left encoded. Raises `msgspec.DecodeError`."""
    return _raw_decoder.decode(payload)


def decode_record(payload: bytes | bytearray | memoryview) -> Genesis | Batch:
    """Decode a payload with its commands, each as by `decode_command`.

    Raises `msgspec.DecodeError`.
    """
    try:
        return _decoder.decode(payload)
    except msgspec.ValidationError:
        record = decode_raw(payload)
        if isinstance(record, Genesis):
            raise
        return Batch(
            offset=record.offset,
            first_command_id=record.first_command_id,
            commands=[decode_command(command) for command in record.commands],
            header=record.header,
            roots=record.roots,
            block_indices=record.block_indices,
            authority=record.authority,
        )
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"text is not valid UTF-8: {error}") from error


def decode_command(command: Raw) -> Entry:
    """Decode one command, with whatever values it has. Raises `msgspec.DecodeError`."""
    try:
        return _entry_decoder.decode(command)
    except msgspec.ValidationError:
        entry = _unbounded_decoder.decode(command)
        if isinstance(entry, Entry):
            return entry
        raise


def decode_keyed(payload: bytes | bytearray | memoryview) -> Genesis | KeyedBatch:
    """Decode a payload with nothing but the keys of its commands. Raises `msgspec.DecodeError`."""
    return _keyed_decoder.decode(payload)


def read_outline(payload: bytes | bytearray | memoryview) -> Outline | None:
    """How a batch begins and ends; its commands are not looked at.

    None for anything that does not begin as the writer encodes a batch.
    """
    match = _OUTLINE.match(payload)
    commands = match and read_array_header(payload, match.end())
    if not match or not commands:
        return None
    fields, offset, first_command_id = match.groups()
    is_plain = fields == _BATCH_FIELDS and bytes(payload[-len(_NO_BLOCK) :]) == _NO_BLOCK
    return Outline(_unsigned(offset), _unsigned(first_command_id), commands[0], not is_plain)


def _unsigned(packed: bytes) -> int:
    """An integer of MessagePack, as `_UNSIGNED` matches them."""
    return packed[0] if len(packed) == 1 else int.from_bytes(packed[1:])
