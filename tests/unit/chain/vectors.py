"""The worked examples of the chain format: a copy of the specification's `vectors.json`."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from app.chain.header import Header, Roots
from app.model.entry import Entry, Event

# Text of the header and of the roots that is a number, not hex.
_NUMBERS = {"batch_seq", "command_count", "first_seq", "timestamp"}


@cache
def vectors() -> Any:
    return json.loads(Path(__file__).with_name("vectors.json").read_text("utf-8"))


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def entry_of(command: Mapping[str, Any]) -> Entry:
    """The block command of an example, without the identity hash that the service derives."""
    return Entry(
        request_uuid=UUID(bytes=from_hex(command["request_uuid"])),
        received_ts_ms=0,
        command_type="TickSnapshot",
        command_data=from_hex(command["command_data"]),
        events=[event_of(event) for event in command["events"]],
    )


def event_of(event: Mapping[str, Any]) -> Event:
    return Event(
        event_topic=event["event_topic"],
        event_key=event["event_key"],
        event_data=from_hex(event["event_data"]),
        l2_sequence=event["l2_sequence"],
        event_type=event["event_type"],
    )


def header_of(block: Mapping[str, Any]) -> Header:
    return Header(**_values(block, Header.__struct_fields__))


def roots_of(block: Mapping[str, Any]) -> Roots:
    return Roots(**_values(block, Roots.__struct_fields__))


def _values(block: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {name: block[name] if name in _NUMBERS else from_hex(block[name]) for name in fields}
