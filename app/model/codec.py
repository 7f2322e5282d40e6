"""Bytes to entries and back.

Request bodies in MessagePack and JSON, and the one canonical encoding.

A WAL record holds a MessagePack entry as it was sent and checked, and a JSON entry in the canonical
encoding, which is its MessagePack map with defaults left out, but perhaps in the order it was sent.
Equal content has equal canonical bytes, whatever it came in; they are made where contents have to
be compared.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw, Struct

from app.errors import EntryFault, InvalidBody, InvalidEntries, TooManyEntries, shortened
from app.model.entry import (
    ADDRESS_BYTES,
    HASH_BYTES,
    MAX_TEXT_BYTES,
    ZERO_DIGEST,
    Address,
    Entry,
    Hash32,
)
from app.model.packing import len_of_header, read_array_header
from app.model.recognizer import LEAST_BYTES, Recognizer
from app.model.rules import RuleBroken, check_entry

MAX_FAULTS: Final = 100
# How a MessagePack body begins, but for one that spells its only key or its map in a longer form.
_OPENING: Final = b"\x81\xa7entries"
LENGTHS: Final[dict[type, int]] = {Address: ADDRESS_BYTES, Hash32: HASH_BYTES}
_BEFORE_PATH: Final = " - at `$"


class PreparedRequest:
    """A valid request as the writer wants it.

    `keys` are its request UUIDs as integers. `array` is what its entries are encoded as: of a body
    that has them as a WAL record does, a part of it, not a copy. `may_make_block` is False where no
    block covers any of them.
    """

    __slots__ = ("_entries", "array", "keys", "may_make_block", "packed")

    def __init__(
        self,
        keys: list[int],
        array: memoryview,
        entries: list[Entry] | None = None,
        *,
        may_make_block: bool = True,
    ) -> None:
        self.keys = keys
        self.array = array
        self.packed = array[len_of_header(array) :]
        """The encodings one after another."""
        self.may_make_block = may_make_block
        self._entries = entries

    @property
    def entries(self) -> list[Entry]:
        """The entries, decoded when they are needed."""
        if self._entries is None:
            self._entries = _entries.decode(self.array)
        return self._entries

    @property
    def is_decoded(self) -> bool:
        """Whether its entries have been decoded."""
        return self._entries is not None

    @property
    def size_bytes(self) -> int:
        """How much of a record it takes."""
        return len(self.packed)


class _Request(Struct, forbid_unknown_fields=True):
    entries: Annotated[list[Entry], Meta(min_length=1)]


class _LooseRequest(Struct, forbid_unknown_fields=True):
    """The same body with its entries left undecoded, to count them and to name each one's fault."""

    entries: Annotated[list[Raw], Meta(min_length=1)]


def decode_hook(kind: type, value: Any) -> Any:
    """Decode the types msgspec does not know: addresses and hashes, from `0x` hex text or bytes."""
    length = LENGTHS[kind]
    if isinstance(value, bytes):
        raw = value
    elif isinstance(value, str) and value.startswith("0x") and len(value) <= MAX_TEXT_BYTES:
        try:
            raw = bytes.fromhex(value[2:])
        except ValueError:
            raise ValueError(f"{value[:80]!r} is not hex text") from None
    else:
        shown = repr(value[:80]) if isinstance(value, str) else f"`{type(value).__name__}`"
        raise ValueError(f"Expected `0x` hex text of {length} bytes, got {shown}")
    if len(raw) != length:
        raise ValueError(f"Expected {length} bytes, got {len(raw)}")
    return kind(raw)


def _encode_hook(value: Any) -> Any:
    if isinstance(value, Address | Hash32):
        return bytes(value)
    raise TypeError(f"{type(value).__name__} has no encoding")


_entries: Final = msgspec.msgpack.Decoder(list[Entry], dec_hook=decode_hook)
# Maps have no order of their own: a sender that keeps symbols in a hash table may well repeat them
# in another one.
_canonical = msgspec.msgpack.Encoder(
    enc_hook=_encode_hook, uuid_format="bytes", order="deterministic"
)


def canonical_bytes(entry: Entry) -> bytes:
    """The one encoding of an entry's content."""
    _leave_out_zero_digests(entry)
    return _canonical.encode(entry)


def pack(entries: Sequence[Entry]) -> bytes:
    """Canonical encodings, one after another."""
    array = _pack(entries)
    return bytes(array[len_of_header(array) :])


def _pack(entries: Sequence[Entry]) -> memoryview:
    for entry in entries:
        _leave_out_zero_digests(entry)
    return memoryview(_canonical.encode(entries))


def _leave_out_zero_digests(entry: Entry) -> None:
    """Defaults are told by identity; a digest of zeros that was spelled out is another object."""
    if entry.pre_digest is not ZERO_DIGEST and entry.pre_digest == ZERO_DIGEST:
        entry.pre_digest = ZERO_DIGEST
    if entry.post_digest is not ZERO_DIGEST and entry.post_digest == ZERO_DIGEST:
        entry.post_digest = ZERO_DIGEST


class RequestCodec:
    """Decodes and checks `POST /entries` bodies under the configured limits."""

    def __init__(
        self, max_entries: int, max_field_bytes: int, recognizer: Recognizer | None = None
    ) -> None:
        self._max_entries = max_entries
        self._max_field_bytes = max_field_bytes
        self._recognizer = recognizer
        self._msgpack = msgspec.msgpack.Decoder(_Request, dec_hook=decode_hook)
        self._json = msgspec.json.Decoder(_Request, dec_hook=decode_hook)

    def prepare(self, body: bytes | bytearray, *, json: bool) -> PreparedRequest:
        """Decode and check a request body.

        One that is encoded anew is emptied before, where it can be: else it would be there twice.

        Raises `InvalidBody` (not decodable), `TooManyEntries`, or `InvalidEntries` with every
        entry's first fault, at most `MAX_FAULTS` of them.
        """
        is_packed = not json and self._is_packed(body)
        if request := self._recognized(body, json=json, is_packed=is_packed):
            return request
        fault = ""
        try:
            entries = (self._json if json else self._msgpack).decode(body).entries
        except msgspec.ValidationError as error:
            fault = shortened(str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _undecodable(error, json) from None
        if fault:
            # Not where it is caught, which would keep it: it may repeat all of a long key.
            raise self._explain(body, json, fault)
        if len(entries) > self._max_entries:
            raise self._too_many(len(entries))
        for index, entry in enumerate(entries):
            try:
                check_entry(entry, self._max_field_bytes)
            except RuleBroken:
                raise self._rule_faults(entries, index) from None
        keys = [entry.request_uuid.int for entry in entries]
        if is_packed:
            return PreparedRequest(keys, memoryview(body)[len(_OPENING) :], entries)
        if isinstance(body, bytearray):
            body.clear()
        return PreparedRequest(keys, _pack(entries), entries)

    def _recognized(
        self, body: bytes | bytearray, *, json: bool, is_packed: bool
    ) -> PreparedRequest | None:
        """The request that a body surely is; None where it must be decoded to be sure."""
        recognizer = self._recognizer
        if recognizer is None or len(body) < LEAST_BYTES or not (json or is_packed):
            return None
        array = recognizer.transcribe(body) if json else memoryview(body)[len(_OPENING) :]
        recognized = None if array is None else recognizer.recognize(array)
        if array is None or recognized is None or len(recognized.keys) > self._max_entries:
            return None
        if json and isinstance(body, bytearray):
            body.clear()
        return PreparedRequest(recognized.keys, array, may_make_block=recognized.is_watched)

    def _is_packed(self, body: bytes | bytearray) -> bool:
        """Whether the entries of a MessagePack body are an array behind its opening, up to its end.

        Else it is spelled so unusually that they are encoded again. Raises `TooManyEntries` before
        any of them is decoded.
        """
        header = read_array_header(body, len(_OPENING)) if body.startswith(_OPENING) else None
        if header is None:
            return False
        count, _ = header
        if count > self._max_entries:
            raise self._too_many(count)
        return True

    def _rule_faults(self, entries: list[Entry], start: int) -> InvalidEntries:
        faults = []
        for index in range(start, len(entries)):
            try:
                check_entry(entries[index], self._max_field_bytes)
            except RuleBroken as broken:
                faults.append(EntryFault(index, broken.path, broken.message))
                if len(faults) == MAX_FAULTS:
                    break
        return _invalid(faults)

    def _too_many(self, count: int) -> TooManyEntries:
        return TooManyEntries(f"{count} entries; at most {self._max_entries} are allowed")

    def _explain(self, body: bytes | bytearray, json: bool, message: str) -> Exception:
        """Turn a decoding error into one fault an entry, by decoding each entry on its own."""
        library = msgspec.json if json else msgspec.msgpack
        try:
            raws = library.decode(body, type=_LooseRequest).entries
        except msgspec.ValidationError as fault:
            return InvalidEntries(shortened(str(fault)))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            return _undecodable(fault, json)
        if len(raws) > self._max_entries:
            return self._too_many(len(raws))
        faults = []
        for index, raw in enumerate(raws):
            try:
                entry = library.decode(raw, type=Entry, dec_hook=decode_hook)
                check_entry(entry, self._max_field_bytes)
            except msgspec.ValidationError as fault:
                faults.append(EntryFault(index, *_split(fault)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
                return _undecodable(fault, json)
            except RuleBroken as broken:
                faults.append(EntryFault(index, broken.path, broken.message))
            if len(faults) == MAX_FAULTS:
                break
        return _invalid(faults) if faults else InvalidEntries(message)


def _invalid(faults: list[EntryFault]) -> InvalidEntries:
    first = faults[0]
    where = f"entry {first.entry}, {first.path}" if first.path else f"entry {first.entry}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidEntries(f"{where}: {first.message}{more}", tuple(faults))


def _undecodable(error: Exception, json: bool) -> InvalidBody:
    if isinstance(error, RecursionError):
        return InvalidBody("the body is nested too deeply")
    return InvalidBody(
        f"the body is not valid {'JSON' if json else 'MessagePack'}: {shortened(str(error))}"
    )


def _split(error: msgspec.ValidationError) -> tuple[str, str]:
    """Take msgspec's message apart: the path within the entry, and what is wrong there."""
    text = shortened(str(error))
    message, found, path = text.rpartition(_BEFORE_PATH)
    return (path.removesuffix("`").removeprefix("."), message) if found else ("", text)
