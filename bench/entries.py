"""The entries that every contestant stores.

A 200-byte command, a 64-byte response and one 120-byte event: about 900 bytes as MessagePack. All
is random; each request has fresh `request_uuid`s, the rest repeats from request to request.
"""

import os
from collections.abc import Iterator
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec

_TIMESTAMP_MS: Final = 1_703_462_400_000


def entry(request_uuid: UUID, command_type: str = "CreateOrder") -> dict[str, Any]:
    """One entry, as a client writes it in MessagePack."""
    book = {"bids": 10, "asks": 12, "best_bid": "5012.25", "best_ask": "5012.50"}
    digest = {"next_order_id": 1, "next_trade_id": 2, "l2_seq": 3, "symbols": {"ES": book}}
    return {
        "request_uuid": request_uuid.bytes,
        "received_ts_ms": _TIMESTAMP_MS,
        "command_type": command_type,
        "command_data": os.urandom(200),
        "response_data": os.urandom(64),
        "order_id": 6_412_777_162_812,
        "pre_digest": digest,
        "post_digest": digest,
        "duration_ms": 1,
        "events": [
            {
                "event_topic": "order-updates",
                "event_key": "6412777162812",
                "event_data": os.urandom(120),
                "l2_sequence": 7,
                "event_type": "OrderUpdate",
            }
        ],
    }


def small_entry(request_uuid: UUID) -> dict[str, Any]:
    """The least that an entry can be: to fill a log with many of them."""
    return {
        "request_uuid": request_uuid.bytes,
        "received_ts_ms": _TIMESTAMP_MS,
        "command_data": b"\1",
    }


def bodies(requests: int, entries: int, *, json: bool = False, small: bool = False) -> list[bytes]:
    """Request bodies of `entries` entries each."""
    uuids = [uuid4() for _ in range(entries)]
    make = small_entry if small else entry
    made = [make(uuid) for uuid in uuids]
    if json:
        for item, uuid in zip(made, uuids, strict=True):
            item["request_uuid"] = str(uuid)
        template = msgspec.json.encode({"entries": made})
        places = [template.index(str(uuid).encode()) for uuid in uuids]
        return [_stamped_text(template, places) for _ in range(requests)]
    template = msgspec.msgpack.encode({"entries": made})
    places = [template.index(uuid.bytes) for uuid in uuids]
    return [stamped(template, places) for _ in range(requests)]


def encoded_entries(count: int) -> Iterator[tuple[UUID, bytes]]:
    """Single entries as MessagePack, each with its `request_uuid`."""
    first = uuid4()
    template = msgspec.msgpack.encode(entry(first))
    place = template.index(first.bytes)
    for _ in range(count):
        uuid = UUID(bytes=os.urandom(16))
        yield uuid, template[:place] + uuid.bytes + template[place + 16 :]


def stamped(template: bytes, places: list[int]) -> bytes:
    """MessagePack with fresh `request_uuid`s at these places."""
    body, fresh = bytearray(template), os.urandom(16 * len(places))
    for index, place in enumerate(places):
        body[place : place + 16] = fresh[16 * index : 16 * index + 16]
    return bytes(body)


def _stamped_text(template: bytes, places: list[int]) -> bytes:
    body, fresh = bytearray(template), os.urandom(16 * len(places)).hex().encode()
    for index, place in enumerate(places):
        text = fresh[32 * index : 32 * index + 32]
        groups = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
        body[place : place + 36] = b"-".join(groups)
    return bytes(body)
