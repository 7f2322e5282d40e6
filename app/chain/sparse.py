"""Sparse Merkle trees over 256-bit keys with path compression (chain page, "Two state trees").

An empty subtree hashes to `ZERO32`, a subtree of one leaf to that leaf's hash at whatever depth,
any other to the hash over its two halves. A node is stored under its place and the version that
wrote it, and never changes: an update writes the nodes on the paths it touches anew, and names the
ones that only older versions still need. So every version can be read until its nodes are pruned.
"""

from collections.abc import Callable, Mapping, Sequence
from struct import Struct as Layout
from typing import Final, NamedTuple

from app.chain.hashing import HASH_BYTES, ZERO32, keccak
from app.chain.merkle import node_hash
from app.errors import InvariantError

KEY_BITS: Final = 8 * HASH_BYTES
_LEAF: Final = b"\x00"
_BRANCH: Final = b"\x01"
_place: Final = Layout(f">H{HASH_BYTES}sQ")
_branch: Final = Layout(f">c{HASH_BYTES}sQ{HASH_BYTES}sQ")
_leaf: Final = Layout(f">c{HASH_BYTES}s{HASH_BYTES}s")


class NodeKey(NamedTuple):
    """Where a node is: the first `depth` bits of all keys below, and the version that wrote it."""

    depth: int
    path: int
    version: int


class Child(NamedTuple):
    """A stored subtree as its parent knows it: its hash and the version that wrote its top node."""

    hash: bytes
    version: int


class Leaf(NamedTuple):
    """The only leaf of a subtree. `value_hash` is `keccak(value)`."""

    key: bytes
    value_hash: bytes

    @property
    def hash(self) -> bytes:
        """`keccak(0x00 ‖ key ‖ keccak(value))`."""
        return keccak(_LEAF + self.key + self.value_hash)


class Branch(NamedTuple):
    """A subtree of two leaves or more; an empty half is None."""

    left: Child | None
    right: Child | None

    @property
    def hash(self) -> bytes:
        """`keccak(0x01 ‖ left ‖ right)`."""
        return node_hash(
            self.left.hash if self.left else ZERO32, self.right.hash if self.right else ZERO32
        )


Node = Leaf | Branch


TreeReader = Callable[[NodeKey], Node]
"""Reads the node that was written under a key; raises when it is not there."""


class TreeState(NamedTuple):
    """What a tree commits to: its root, and the version that wrote its top node (None if empty)."""

    root: bytes = ZERO32
    version: int | None = None


class TreeUpdate(NamedTuple):
    """A prepared update: the state after it, the nodes to write, and the nodes it makes obsolete.

    A node in `stale` is needed by versions before this one only: it may go once they are pruned.
    """

    state: TreeState
    written: dict[NodeKey, Node]
    stale: list[NodeKey]


def prepare(
    state: TreeState, read: TreeReader, updates: Mapping[bytes, bytes | None], version: int
) -> TreeUpdate:
    """Prepare setting the values of `updates` (None deletes), as `version`. Nothing is changed.

    Raises `ValueError` for a key that is not 32 bytes, `InvariantError` when `version` is not new.
    """
    if state.version is not None and version <= state.version:
        raise InvariantError(f"tree version {version} does not follow version {state.version}")
    for key in updates:
        if len(key) != HASH_BYTES:
            raise ValueError(f"a tree key has {HASH_BYTES} bytes, not {len(key)}")
    changes = [
        Leaf(key, b"" if value is None else keccak(value)) for key, value in sorted(updates.items())
    ]
    old = None if state.version is None else Child(state.root, state.version)
    update = _Update(read, version)
    root = update.place(update.change(old, 0, 0, changes), 0, 0)
    new = TreeState() if root is None else TreeState(root.hash, root.version)
    return TreeUpdate(new, update.written, update.stale)


class _Update:
    """The nodes that one update writes and makes stale.

    A changed subtree travels upwards as its unplaced top node: only the parent knows whether it
    stays where it is or, as the only leaf of a larger subtree, moves up. An unchanged one travels
    as its `Child`.
    """

    def __init__(self, read: TreeReader, version: int) -> None:
        self._read = read
        self._version = version
        self.written: dict[NodeKey, Node] = {}
        self.stale: list[NodeKey] = []

    def change(
        self, old: Child | None, depth: int, path: int, changes: Sequence[Leaf]
    ) -> Child | Node | None:
        """Apply sorted `changes` (an empty value hash deletes) to the subtree at this place."""
        if not changes:
            return old
        if old is None:
            return self._build([leaf for leaf in changes if leaf.value_hash], depth, path)
        key = NodeKey(depth, path, old.version)
        node = self._read(key)
        if isinstance(node, Leaf):
            leaves = _merge(node, changes)
            if leaves == [node]:
                return old
            self.stale.append(key)
            return self._build(leaves, depth, path)
        cut = _first_right(changes, depth)
        left = self.change(node.left, depth + 1, path << 1, changes[:cut])
        right = self.change(node.right, depth + 1, path << 1 | 1, changes[cut:])
        if left is node.left and right is node.right:
            return old
        self.stale.append(key)
        return self._join(left, right, depth, path)

    def place(self, top: Child | Node | None, depth: int, path: int) -> Child | None:
        """Write an unplaced top node to this place."""
        if top is None or isinstance(top, Child):
            return top
        self.written[NodeKey(depth, path, self._version)] = top
        return Child(top.hash, self._version)

    def _build(self, leaves: Sequence[Leaf], depth: int, path: int) -> Node | None:
        if len(leaves) < 2:
            return leaves[0] if leaves else None
        cut = _first_right(leaves, depth)
        left = self._build(leaves[:cut], depth + 1, path << 1)
        right = self._build(leaves[cut:], depth + 1, path << 1 | 1)
        return Branch(
            self.place(left, depth + 1, path << 1), self.place(right, depth + 1, path << 1 | 1)
        )

    def _join(
        self, left: Child | Node | None, right: Child | Node | None, depth: int, path: int
    ) -> Node | None:
        if left is None:
            lone = self._lone_leaf(right, depth + 1, path << 1 | 1)
        else:
            lone = self._lone_leaf(left, depth + 1, path << 1) if right is None else None
        if lone is not None or (left is None and right is None):
            return lone
        return Branch(
            self.place(left, depth + 1, path << 1), self.place(right, depth + 1, path << 1 | 1)
        )

    def _lone_leaf(self, top: Child | Node | None, depth: int, path: int) -> Leaf | None:
        """Take out the leaf of a subtree that holds no other, so that it can move up."""
        if not isinstance(top, Child):
            return top if isinstance(top, Leaf) else None
        key = NodeKey(depth, path, top.version)
        node = self._read(key)
        if not isinstance(node, Leaf):
            return None
        self.stale.append(key)
        return node


def encode_key(key: NodeKey) -> bytes:
    """Encode a place and version in 42 bytes, ordered so that the versions of a place adjoin."""
    return _place.pack(
        key.depth, (key.path << KEY_BITS - key.depth).to_bytes(HASH_BYTES, "big"), key.version
    )


def encode_node(node: Node) -> bytes:
    """Encode a node for a store: 65 bytes for a leaf, 81 for a branch."""
    if isinstance(node, Leaf):
        return _leaf.pack(_LEAF, node.key, node.value_hash)
    left, right = node.left or _NO_CHILD, node.right or _NO_CHILD
    return _branch.pack(_BRANCH, left.hash, left.version, right.hash, right.version)


def decode_node(data: bytes) -> Node:
    """Decode what `encode_node` returned. Raises `ValueError` for anything else."""
    if len(data) == _leaf.size and data[:1] == _LEAF:
        _, key, value_hash = _leaf.unpack(data)
        return Leaf(key, value_hash)
    if len(data) == _branch.size and data[:1] == _BRANCH:
        _, left, left_version, right, right_version = _branch.unpack(data)
        return Branch(_child(left, left_version), _child(right, right_version))
    raise ValueError(f"{len(data)} bytes that are not a tree node")


_NO_CHILD: Final = Child(ZERO32, 0)


def _child(node: bytes, version: int) -> Child | None:
    return None if node == ZERO32 else Child(node, version)


def _merge(leaf: Leaf, changes: Sequence[Leaf]) -> list[Leaf]:
    """Return the leaves of a one-leaf subtree after `changes`, sorted."""
    leaves = {leaf.key: leaf} | {change.key: change for change in changes}
    return [leaf for _, leaf in sorted(leaves.items()) if leaf.value_hash]


def _first_right(leaves: Sequence[Leaf], depth: int) -> int:
    """Return the index of the first of the sorted `leaves` that goes right at `depth`."""
    low, high = 0, len(leaves)
    byte, mask = depth >> 3, 0x80 >> (depth & 7)
    while low < high:
        middle = (low + high) >> 1
        if leaves[middle].key[byte] & mask:
            high = middle
        else:
            low = middle + 1
    return low
