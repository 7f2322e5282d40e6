"""The chain page once more, written as directly as it can be read: slow and plain.

Keccak comes from pycryptodome and MessagePack from msgpack; nothing of `app.chain` is used.
"""

import struct
from collections.abc import Mapping, Sequence

import msgpack
from Crypto.Hash import keccak as pycryptodome_keccak

ZERO32 = bytes(32)


def keccak(data: bytes) -> bytes:
    return pycryptodome_keccak.new(data=data, digest_bits=256).digest()


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def in_domain(domain: str, payload: bytes) -> bytes:
    return keccak(domain.encode("ascii") + u64(len(payload)) + payload)


def largest_power_below(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def log_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 9162, section 2.1.1."""
    if not leaves:
        return keccak(b"")
    if len(leaves) == 1:
        return keccak(b"\x00" + leaves[0])
    k = largest_power_below(len(leaves))
    return keccak(b"\x01" + log_root(leaves[:k]) + log_root(leaves[k:]))


def inclusion_path(index: int, leaves: Sequence[bytes]) -> list[bytes]:
    """RFC 9162, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if index < k:
        return [*inclusion_path(index, leaves[:k]), log_root(leaves[k:])]
    return [*inclusion_path(index - k, leaves[k:]), log_root(leaves[:k])]


def consistency_path(first: int, leaves: Sequence[bytes], *, known: bool = True) -> list[bytes]:
    """RFC 9162, section 2.1.4.1."""
    if first == len(leaves):
        return [] if known else [log_root(leaves)]
    k = largest_power_below(len(leaves))
    if first <= k:
        return [*consistency_path(first, leaves[:k], known=known), log_root(leaves[k:])]
    return [*consistency_path(first - k, leaves[k:], known=False), log_root(leaves[:k])]


def tree_root(leaves: Mapping[bytes, bytes], depth: int = 0) -> bytes:
    if not leaves:
        return ZERO32
    if len(leaves) == 1:
        ((key, value),) = leaves.items()
        return keccak(b"\x00" + key + keccak(value))
    halves: tuple[dict[bytes, bytes], dict[bytes, bytes]] = {}, {}
    for key, value in leaves.items():
        bit = int.from_bytes(key, "big") >> (255 - depth) & 1
        halves[bit][key] = value
    left, right = (tree_root(half, depth + 1) for half in halves)
    return keccak(b"\x01" + left + right)


def event_hash(
    topic: str, key: str | None, data: bytes, l2_sequence: int | None, event_type: str
) -> bytes:
    fields = {
        "event_topic": topic,
        "event_key": key,
        "event_data": list(data),
        "l2_sequence": l2_sequence,
        "event_type_enum": event_type,
    }
    return in_domain("hypercall:rsm:event-payload:v1", msgpack.packb(fields))


def identity(request_uuid: bytes, command_data: bytes) -> bytes:
    return in_domain("hypercall:rsm:command-identity:v1", request_uuid + command_data)


def commands_hash(identities: Sequence[bytes]) -> bytes:
    return in_domain("hypercall:rsm:commands:v1", b"".join(identities))


def state_root(batch_commands_hash: bytes, command_chain_seq: int) -> bytes:
    key = in_domain("hypercall:rsm:leaf:global:v1", b"")
    return tree_root({key: u64(0) + u64(0) + batch_commands_hash + u64(command_chain_seq)})


def batch_root(version: int, roots: Sequence[bytes]) -> bytes:
    return in_domain("hypercall:rsm:batch-root:v1", u64(version) + b"".join(roots))
