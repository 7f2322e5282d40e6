"""Keccak-256 and the domain-separated hash (chain page, "Primitives").

`keccak` is the Ethereum function (padding 0x01), not SHA3-256. It takes `bytes` alone.
"""

from collections.abc import Callable
from struct import Struct as Layout
from typing import Final

from tiny_keccak import keccak256

HASH_BYTES: Final = 32
ZERO32: Final = bytes(HASH_BYTES)

keccak: Final[Callable[[bytes], bytes]] = keccak256

_u64: Final = Layout(">Q")
u64: Final[Callable[[int], bytes]] = _u64.pack
"""8 bytes, big-endian. Raises `struct.error` for what does not fit."""


def hash_in_domain(domain: bytes, payload: bytes) -> bytes:
    """`H(domain, payload) = keccak(domain ‖ u64(len(payload)) ‖ payload)`, 32 bytes."""
    return keccak(domain + u64(len(payload)) + payload)
