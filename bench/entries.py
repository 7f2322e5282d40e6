"""The entries that benchmarks journal.

About 900 bytes each as MessagePack, each request_uuid fresh.
"""

import os
from typing import Any
from uuid import uuid4

import msgspec


def body(entries: int, command_type: str = "CreateOrder") -> bytes:
    """A request body in MessagePack: 200-byte commands, 64-byte responses, 120-byte events."""
    return msgspec.msgpack.encode({"entries": [_entry(command_type) for _ in range(entries)]})


def _entry(command_type: str) -> dict[str, Any]:
    digest = {"next_order_id": 1, "next_trade_id": 2, "l2_seq": 3, "symbols": {"ES": {"bids": 10}}}
    return {
        "request_uuid": uuid4().bytes,
        "received_ts_ms": 1_703_462_400_000,
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
