"""A WAL reader that shares nothing with the service's own: `struct`, `crcmod` and `msgpack`.

Written from the protocol's section 5 alone. It accepts no fault, for logs that should have none.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

import crcmod.predefined
import msgpack
from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

_crc32c: Final = crcmod.predefined.mkPredefinedCrcFun("crc-32c")
_DIGITS: Final = 20


class ForeignRecord(NamedTuple):
    """A record: the segment it is in, its logical offset, its payload, and what that decodes to."""

    segment: Path
    offset: int
    payload: bytes
    content: dict[str, Any]

    @property
    def end(self) -> int:
        return self.offset + 8 + len(self.payload)


def read_wal(directory: Path, kept_from: int = 0) -> Iterator[ForeignRecord]:
    """Every record, in order, over all segments; each assertion is a sentence of the protocol.

    What lies before the offset `kept_from` may have been given back, and only its genesis is read.
    """
    segments = ((path, path.read_bytes()) for path in sorted(directory.glob("*.wal")))
    return read_segments(segments, kept_from)


def read_segments(
    segments: Iterable[tuple[Path, bytes]], kept_from: int = 0
) -> Iterator[ForeignRecord]:
    """Likewise, of segments that are given with what is in them, in the order of their names."""
    expected: int | None = None
    for path, data in segments:
        assert len(path.stem) == _DIGITS, path
        start = int(path.stem)
        assert expected in (None, start), f"{path.name} does not begin where the one before ends"
        at = 0
        while at < len(data):
            record = _record(path, start, data, at)
            assert (record.content["kind"] == "genesis") == (at == 0), record.offset
            yield record
            at = max(record.end, kept_from) - start
        expected = start + len(data)


def _record(path: Path, start: int, data: bytes, at: int) -> ForeignRecord:
    length, crc = struct.unpack_from("<II", data, at)
    assert length > 0, f"{path.name}: zero length at {start + at}"
    payload = data[at + 8 : at + 8 + length]
    assert len(payload) == length, f"{path.name}: incomplete record at {start + at}"
    assert _crc32c(payload) == crc, f"{path.name}: wrong CRC at {start + at}"
    content = msgpack.unpackb(payload, strict_map_key=False)
    assert list(content)[:2] == ["kind", "offset"], f"{path.name}: {list(content)} at {start + at}"
    assert content["offset"] == start + at
    return ForeignRecord(path, start + at, payload, content)


def plain(value: Any) -> Any:
    """A struct as the schemaless map that its canonical encoding is: defaults left out."""
    if isinstance(value, Struct):
        return {
            field.encode_name: plain(item)
            for field in _fields(type(value))
            if (item := getattr(value, field.name)) != _default(field)
        }
    if isinstance(value, UUID):
        return value.bytes
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


@cache
def _fields(kind: type[Struct]) -> tuple[FieldInfo, ...]:
    return fields(kind)


def _default(field: Any) -> Any:
    if field.default_factory is not NODEFAULT:
        return field.default_factory()
    return field.default
