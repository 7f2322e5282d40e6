"""Keys and values of the commitment store. Pure: bytes in, values out.

The first byte of a key says what it holds; numbers in keys are big-endian, so that keys sort by
them. A log's nodes are stored in the runs they were appended in: a run's key is the place of its
first node, its value their hashes side by side.

    a ‖ u64 height              the delegation that the block's record brings
    b ‖ u64 height              StoredBlock
    c ‖ u64 first leaf          the commands of the block whose first leaf it is, by columns
    l, o, i ‖ u8 level ‖ u64 start      nodes of the command, obligation and intent logs;
                                `i` only where it went another way than `l`
    s, r ‖ NodeKey              nodes of the state and risk trees
    u ‖ uuid ‖ u64 leaf         the leaves of a request_uuid: the lowest is the first
    x ‖ u64 version             keys of the tree nodes that the version made obsolete
    !cursor                     Cursor
    !seen                       Seen
    !synced                     u64: the number of blocks that were durable at the last sync
"""

from collections.abc import Iterator, Sequence
from struct import Struct as Layout
from typing import Final

import msgspec
from msgspec import Struct

from app.chain.hashing import HASH_BYTES, ZERO32, u64
from app.chain.header import Bytes32, Delegation, Header, Roots
from app.chain.merkle import NodeRun
from app.chain.sparse import NodeKey, encode_key
from app.model.entry import Count

FORMAT: Final = 1
CURSOR: Final = b"!cursor"
SEEN: Final = b"!seen"
SYNCED: Final = b"!synced"
COMMAND_LOG: Final = b"l"
OBLIGATION_LOG: Final = b"o"
INTENT_LOG: Final = b"i"
STATE_TREE: Final = b"s"
RISK_TREE: Final = b"r"
UUID_BYTES: Final = 16
# Bounds what is read for one node, whatever the size of a block.
RUN_NODES: Final = 256
_RUN_BYTES: Final = RUN_NODES * HASH_BYTES

_run: Final = Layout(">cBQ")
_TREE_KEY_BYTES: Final = 1 + len(encode_key(NodeKey(0, 0, 0)))


class StoredBlock(Struct, frozen=True, kw_only=True, gc=False):
    """A block, and the `command_id`s of its first and last block command."""

    header: Header
    roots: Roots
    block_hash: Bytes32
    first_command_id: Count
    last_command_id: Count


class BlockCommand(Struct, frozen=True, gc=False):
    """A block command: `leaf_index` is its place in the command log, `identity` the leaf."""

    command_id: int
    request_uuid: bytes
    command_type: str
    identity: bytes
    leaf_index: int


class Owner(Struct, frozen=True):
    """Whose store it is: the part of `Cursor` that every format has."""

    format: int
    environment: str


class Cursor(Struct, frozen=True, kw_only=True):
    """Where the store stands. The peaks of the logs are read from their nodes.

    `pruned` is the first version whose obsolete tree nodes are still there.
    """

    format: int = FORMAT
    environment: str
    wal_id: str | None = None
    wal_offset: int = 0
    height: int = 0
    prev_block_hash: Bytes32 = ZERO32
    commands: int = 0
    obligations: int = 0
    intents: int = 0
    state_root: Bytes32 = ZERO32
    state_version: int | None = None
    risk_root: Bytes32 = ZERO32
    risk_version: int | None = None
    pruned: int = 0


class Seen(Struct, frozen=True, array_like=True):
    """How far a log was applied, batches that are no blocks included, at the last sync."""

    wal_id: str
    wal_offset: int


class _Height(Struct, array_like=True, gc=False):
    """The part of `_Columns` that tells the block."""

    height: int


class _Columns(Struct, array_like=True, gc=False):
    """The commands of a block; ids count from the first one's."""

    height: int
    first_command_id: int
    ids: list[int]
    types: list[str]
    uuids: bytes
    identities: bytes


encode: Final = msgspec.msgpack.Encoder().encode
decode_owner: Final = msgspec.msgpack.Decoder(Owner).decode
decode_cursor: Final = msgspec.msgpack.Decoder(Cursor).decode
decode_seen: Final = msgspec.msgpack.Decoder(Seen).decode
decode_block: Final = msgspec.msgpack.Decoder(StoredBlock).decode
decode_delegation: Final = msgspec.msgpack.Decoder(Delegation).decode
_decode_columns: Final = msgspec.msgpack.Decoder(_Columns).decode
_decode_height: Final = msgspec.msgpack.Decoder(_Height).decode


def authority_key(height: int) -> bytes:
    """The key of the delegation that a block's record brings."""
    return b"a" + u64(height)


def block_key(height: int) -> bytes:
    """The key of a block."""
    return b"b" + u64(height)


def commands_key(first_leaf: int) -> bytes:
    """The key of the commands of the block that begins at a leaf of the command log."""
    return b"c" + u64(first_leaf)


def stale_key(version: int) -> bytes:
    """The key of what a version of the trees made obsolete."""
    return b"x" + u64(version)


def tree_key(tree: bytes, key: NodeKey) -> bytes:
    """The key of a tree node."""
    return tree + encode_key(key)


def uuid_key(request_uuid: bytes, leaf: int) -> bytes:
    """The key that says that a `request_uuid` has a leaf."""
    return b"u" + request_uuid + u64(leaf)


def run_key(log: bytes, level: int, start: int) -> bytes:
    """The key of a run of complete nodes of a log."""
    return _run.pack(log, level, start)


def leaf_of_key(key: bytes, request_uuid: bytes) -> int | None:
    """The leaf in a `uuid_key`; None for a key of anything else."""
    return _number_behind(key, b"u" + request_uuid)


def first_leaf_of_key(key: bytes) -> int | None:
    """The leaf in a `commands_key`; None for a key of anything else."""
    return _number_behind(key, b"c")


def split_runs(log: bytes, runs: Sequence[NodeRun]) -> Iterator[tuple[bytes, bytes]]:
    """Split an append's nodes into stored runs, keys and values."""
    for level, start, hashes in runs:
        for at in range(0, len(hashes), _RUN_BYTES):
            key = _run.pack(log, level, start + at // HASH_BYTES)
            yield key, hashes[at : at + _RUN_BYTES]


def node_in_run(pair: tuple[bytes, bytes], wanted: bytes) -> bytes | None:
    """Find a node, by the key that a run starting with it would have; None when not in the run."""
    key, hashes = pair
    # Log and level.
    if len(key) != _run.size or key[:2] != wanted[:2]:
        return None
    at = (int.from_bytes(wanted[2:], "big") - int.from_bytes(key[2:], "big")) * HASH_BYTES
    node = hashes[at : at + HASH_BYTES]
    return node if len(node) == HASH_BYTES else None


def split_tree_keys(value: bytes) -> list[bytes]:
    """Split the value under a `stale_key` into `tree_key`s."""
    return [value[at : at + _TREE_KEY_BYTES] for at in range(0, len(value), _TREE_KEY_BYTES)]


def encode_commands(
    height: int, commands: Sequence[BlockCommand], identities: Sequence[bytes]
) -> bytes:
    """Encode a block's commands."""
    first = commands[0].command_id
    columns = _Columns(
        height,
        first,
        [command.command_id - first for command in commands],
        [command.command_type for command in commands],
        b"".join([command.request_uuid for command in commands]),
        b"".join(identities),
    )
    return encode(columns)


def decode_commands(value: bytes, first_leaf: int) -> Iterator[BlockCommand]:
    """Decode what `encode_commands` returned, each command when it is asked for.

    What does not decode raises `ValueError` at once.
    """
    columns = _decode_columns(value)
    if len(columns.ids) != len(columns.types):
        raise ValueError(f"{len(columns.ids)} ids and {len(columns.types)} types")
    return (
        BlockCommand(
            columns.first_command_id + step,
            columns.uuids[index * UUID_BYTES : (index + 1) * UUID_BYTES],
            command_type,
            columns.identities[index * HASH_BYTES : (index + 1) * HASH_BYTES],
            first_leaf + index,
        )
        for index, (step, command_type) in enumerate(zip(columns.ids, columns.types, strict=True))
    )


def decode_height(value: bytes) -> int:
    """Decode the height alone. Raises `msgspec.DecodeError`."""
    return _decode_height(value).height


def decode_identity(value: bytes, index: int) -> bytes:
    """Decode the identity of one of a block's commands. Raises `msgspec.DecodeError`."""
    return _decode_columns(value).identities[index * HASH_BYTES : (index + 1) * HASH_BYTES]


def _number_behind(key: bytes, prefix: bytes) -> int | None:
    number = key[len(prefix) :]
    if len(number) != 8 or not key.startswith(prefix):
        return None
    return int.from_bytes(number, "big")
