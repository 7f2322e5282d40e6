"""The forms in which clients send entries."""

from base64 import b64encode
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgpack
from msgspec import Struct

from app.model.entry import Address, Hash32
from tests.support.foreign_wal import plain


def to_json(value: Any) -> Any:
    """An entry as a client sends it in JSON: base64, `0x` hex, UUIDs as text; all spelled out."""
    return _spelled(value, _json_leaf)


def to_msgpack(value: Any) -> bytes:
    """An entry as a client sends it in MessagePack, defaults left out."""
    packed: bytes = msgpack.packb(plain(value))
    return packed


def _json_leaf(value: Any) -> Any:
    if isinstance(value, Address | Hash32):
        return "0x" + value.hex()
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value) if isinstance(value, UUID) else value


def _spelled(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, Struct):
        return {name: _spelled(getattr(value, name), leaf) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: _spelled(item, leaf) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item, leaf) for item in value]
    return leaf(value)
