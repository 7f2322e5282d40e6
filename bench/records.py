"""The records that the service would write for these entries."""

from typing import Final

from app.model.codec import PreparedRequest, RequestCodec
from app.model.packing import pack_array
from app.wal.record import PackedBatch, encode_record
from bench.entries import bodies

_MAX_FIELD_BYTES: Final = 1 << 20


def prepared(requests: int, entries: int) -> list[PreparedRequest]:
    """Requests of `entries` entries each, as the writer gets them."""
    codec = RequestCodec(entries, _MAX_FIELD_BYTES)
    return [codec.prepare(body, json=False) for body in bodies(requests, entries)]


def record_of(request: PreparedRequest, offset: int, first_command_id: int) -> bytearray:
    """The record of a group commit that takes in one request."""
    commands = pack_array(len(request.keys), [request.packed])
    return encode_record(
        PackedBatch(offset=offset, first_command_id=first_command_id, commands=commands)
    )
