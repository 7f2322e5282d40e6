"""What a block hashes, and its header (chain page, "Which entries …" to "Batch root and header").

`Header` and `Roots` are the structs that a WAL record and the commitment store hold. Their field
names are those of the page; hashes are 32 bytes, addresses 20, times in milliseconds.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from app.chain.bulk import lanes_for, split
from app.chain.hashing import HASH_BYTES, ZERO32, hash_in_domain, u64
from app.model.entry import ADDRESS_BYTES, Count, Entry, Event

SIGNATURE_BYTES: Final = 65
NO_SIGNER: Final = bytes(ADDRESS_BYTES)

IDENTITY_DOMAIN: Final = b"hypercall:rsm:command-identity:v1"
_COMMANDS: Final = b"hypercall:rsm:commands:v1"
EVENT_DOMAIN: Final = b"hypercall:rsm:event-payload:v1"
_BATCH_ROOT: Final = b"hypercall:rsm:batch-root:v1"
_HEADER: Final = b"hypercall:rsm:block-header:v1"
GLOBAL_LEAF_KEY: Final = hash_in_domain(b"hypercall:rsm:leaf:global:v1", b"")
# next_order_id and next_trade_id stay 0 until their materializers exist.
_NEXT_IDS: Final = u64(0) + u64(0)

Bytes32 = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Bytes20 = Annotated[bytes, Meta(min_length=ADDRESS_BYTES, max_length=ADDRESS_BYTES)]
SignatureBytes = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]


class Roots(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The roots of the two state trees and the three logs after a block."""

    state_root: Bytes32
    risk_root: Bytes32
    command_root: Bytes32
    obligation_root: Bytes32
    intent_root: Bytes32


class Header(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A block header. An unsigned one has a zero `signer` and an empty `signature`."""

    batch_seq: Count
    prev_block_hash: Bytes32
    commands_hash: Bytes32
    batch_root: Bytes32
    command_count: Count
    first_seq: Count
    timestamp: Count
    signer: Bytes20 = NO_SIGNER
    signature: SignatureBytes = b""


class Delegation(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The cold key's word that `delegate` signs for it, in a window of ms, ends included."""

    delegator: Bytes20
    delegate: Bytes20
    valid_from: Count
    valid_until: Count
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]

    def covers(self, time_ms: int) -> bool:
        """Whether `time_ms` is in the window."""
        return self.valid_from <= time_ms <= self.valid_until


class _EventMap(Struct, gc=False):
    """The original engine's encoding of an event: these keys, in this order."""

    event_topic: str
    event_key: str | None
    event_data: list[int]
    l2_sequence: int | None
    event_type_enum: str


class _EventShell(Struct, gc=False):
    """An event without its data: an empty array stands in its place."""

    event_topic: str
    event_key: str | None
    event_data: tuple[()]
    l2_sequence: int | None
    event_type_enum: str


# No text holds this: 0x90 begins no character, and none goes on with it behind a letter.
_CUT: Final = b"event_data\x90"
_encode: Final = msgspec.msgpack.Encoder().encode

EVENT_SHELL: Final = _encode(_EventShell("", None, (), None, ""))
"""The encoding of an event of nothing."""
SHELL_CUTS: Final = [
    EVENT_SHELL.index(name.encode()) + len(name) for name in _EventShell.__struct_fields__
]
"""Where its values are, of one byte each."""


def event_bytes(event: Event) -> bytes:
    """Encode an event as the original engine does: `event_data` is an array of integers."""
    return _encode(
        _EventMap(
            event.event_topic,
            event.event_key,
            list(event.event_data),
            event.l2_sequence,
            event.event_type,
        )
    )


def event_hash(event: Event) -> bytes:
    """Hash one event: what the obligation log holds."""
    return hash_in_domain(EVENT_DOMAIN, event_bytes(event))


def event_hashes(events: Sequence[Event]) -> list[bytes]:
    """Hash events, as `event_hash` does."""
    lanes = lanes_for(len(events))
    if lanes is None:
        return [event_hash(event) for event in events]
    shells = [
        _encode(_EventShell(e.event_topic, e.event_key, (), e.l2_sequence, e.event_type))
        for e in events
    ]
    cuts = [shell.index(_CUT) + len(_CUT) - 1 for shell in shells]
    return split(
        lanes.hash_events(EVENT_DOMAIN, shells, cuts, [event.event_data for event in events])
    )


def derived_identity(request_uuid: bytes, command_data: bytes) -> bytes:
    """Return the identity hash the service sets where the engine sent none."""
    return hash_in_domain(IDENTITY_DOMAIN, request_uuid + command_data)


def command_identity(entry: Entry) -> bytes:
    """Return an entry's identity hash: the engine's, or the derived one when absent or all zero."""
    sent = entry.command_identity_hash
    if sent is None or sent == ZERO32:
        return derived_identity(entry.request_uuid.bytes, entry.command_data)
    return bytes(sent)


def command_identities(entries: Sequence[Entry]) -> list[bytes]:
    """Return the identity hashes of entries, as `command_identity` does."""
    lanes = lanes_for(len(entries))
    if lanes is None:
        return [command_identity(entry) for entry in entries]
    sent = [entry.command_identity_hash for entry in entries]
    derived = [
        entry.request_uuid.bytes + entry.command_data
        for entry, identity in zip(entries, sent, strict=True)
        if identity is None or identity == ZERO32
    ]
    hashes = iter(split(lanes.hash_payloads(IDENTITY_DOMAIN, derived)))
    return [
        next(hashes) if identity is None or identity == ZERO32 else bytes(identity)
        for identity in sent
    ]


def commands_hash(identities: Sequence[bytes]) -> bytes:
    """Hash the identity hashes of a batch, in batch order."""
    return hash_in_domain(_COMMANDS, b"".join(identities))


def global_leaf_value(batch_commands_hash: bytes, command_chain_seq: int) -> bytes:
    """Return the value of the state tree's global leaf, with the number of commands so far."""
    return _NEXT_IDS + batch_commands_hash + u64(command_chain_seq)


def batch_root(version: int, roots: Roots) -> bytes:
    """Bind the roots after a batch to its height."""
    payload = (
        u64(version)
        + roots.state_root
        + roots.risk_root
        + roots.command_root
        + roots.obligation_root
        + roots.intent_root
    )
    return hash_in_domain(_BATCH_ROOT, payload)


def block_hash(header: Header) -> bytes:
    """Hash a header; its signature is over this hash and so not part of it."""
    payload = (
        u64(header.batch_seq)
        + header.prev_block_hash
        + header.commands_hash
        + header.batch_root
        + u64(header.command_count)
        + u64(header.first_seq)
        + u64(header.timestamp)
        + header.signer
    )
    return hash_in_domain(_HEADER, payload)
