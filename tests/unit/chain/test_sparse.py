import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chain.hashing import ZERO32, keccak
from app.chain.sparse import (
    Branch,
    Child,
    Leaf,
    Node,
    NodeKey,
    TreeState,
    TreeUpdate,
    decode_node,
    encode_key,
    encode_node,
    prepare,
)
from app.errors import InvariantError
from tests.unit.chain import reference
from tests.unit.chain.vectors import from_hex, vectors

# Few different keys, some with very long common prefixes, so that updates meet, split and collapse.
KEYS = [
    ZERO32,
    bytes(31) + b"\x01",
    bytes(31) + b"\x03",
    b"\xff" * 32,
    b"\xff" * 31 + b"\xfe",
    b"\x80" + bytes(31),
    *(keccak(bytes([number])) for number in range(12)),
]
values = st.one_of(st.none(), st.binary(max_size=3))
updates = st.dictionaries(st.sampled_from(KEYS), values, max_size=8)


class StoredTree:
    """A tree as a store would keep it: encoded nodes of all versions, and a list of stale ones."""

    def __init__(self) -> None:
        self.state = TreeState()
        self.version = 0
        self.leaves: dict[bytes, bytes] = {}
        self.nodes: dict[bytes, bytes] = {}
        self.stale: list[tuple[int, bytes]] = []

    def read(self, key: NodeKey) -> Node:
        return decode_node(self.nodes[encode_key(key)])

    def update(self, changes: dict[bytes, bytes | None]) -> None:
        self.apply(prepare(self.state, self.read, changes, self.version))
        for key, value in changes.items():
            if value is None:
                self.leaves.pop(key, None)
            else:
                self.leaves[key] = value

    def apply(self, prepared: TreeUpdate) -> None:
        for key, node in prepared.written.items():
            assert encode_key(key) not in self.nodes, "a node never changes"
            assert key.version == self.version
            self.nodes[encode_key(key)] = encode_node(node)
        for key in prepared.stale:
            assert encode_key(key) in self.nodes
            assert key.version < self.version
            self.stale.append((self.version, encode_key(key)))
        self.state = prepared.state
        self.version += 1

    def reachable(self, state: TreeState) -> dict[bytes, bytes]:
        """All nodes of a version, each checked to be under its own hash."""
        found: dict[bytes, bytes] = {}
        waiting = [] if state.version is None else [(0, 0, Child(state.root, state.version))]
        while waiting:
            depth, path, child = waiting.pop()
            key = NodeKey(depth, path, child.version)
            node = self.read(key)
            assert node.hash == child.hash
            found[encode_key(key)] = encode_node(node)
            if isinstance(node, Branch):
                for bit, half in enumerate((node.left, node.right)):
                    if half is not None:
                        waiting.append((depth + 1, path << 1 | bit, half))
        return found

    def prune(self, oldest: int) -> None:
        for since, key in self.stale:
            if since <= oldest:
                self.nodes.pop(key)
        self.stale = [(since, key) for since, key in self.stale if since > oldest]


@pytest.mark.parametrize("tree", vectors()["sparse_trees"], ids=lambda t: f"{len(t['leaves'])}")
def test_vector_trees_have_their_roots_in_one_update_and_leaf_by_leaf(
    tree: dict[str, list[list[str]]],
) -> None:
    leaves = {from_hex(key): from_hex(value) for key, value in tree["leaves"]}
    together, one_by_one = StoredTree(), StoredTree()
    together.update(dict(leaves))
    for key, value in leaves.items():
        one_by_one.update({key: value})
    assert together.state.root == one_by_one.state.root == from_hex(str(tree["root"]))


@given(st.lists(updates, max_size=8))
def test_any_sequence_of_updates_gives_the_root_over_the_leaves_that_are_left(
    batches: list[dict[bytes, bytes | None]],
) -> None:
    tree = StoredTree()
    for batch in batches:
        tree.update(batch)
        assert tree.state.root == reference.tree_root(tree.leaves)
        tree.reachable(tree.state)


@given(st.lists(updates, max_size=8))
def test_old_versions_stay_readable_and_pruning_leaves_exactly_the_kept_ones(
    batches: list[dict[bytes, bytes | None]],
) -> None:
    tree = StoredTree()
    states, reachable = [], []
    for batch in batches:
        tree.update(batch)
        states.append(tree.state)
        reachable.append(tree.reachable(tree.state))
    for oldest in range(len(batches)):
        tree.prune(oldest)
        kept = [tree.reachable(state) for state in states[oldest:]]
        assert kept == reachable[oldest:]
        assert set(tree.nodes) == set().union(*kept)


@given(st.lists(updates, max_size=4), updates)
def test_a_prepared_update_that_is_dropped_leaves_no_trace(
    batches: list[dict[bytes, bytes | None]], dropped: dict[bytes, bytes | None]
) -> None:
    tree = StoredTree()
    for batch in batches:
        tree.update(batch)
    state, nodes = tree.state, dict(tree.nodes)
    first = prepare(tree.state, tree.read, dropped, tree.version)
    assert (tree.state, tree.nodes) == (state, nodes)
    assert prepare(tree.state, tree.read, dropped, tree.version) == first


def test_a_tree_whose_leaves_are_all_deleted_is_zero_again() -> None:
    tree = StoredTree()
    tree.update(dict.fromkeys(KEYS, b"value"))
    for key in KEYS:
        tree.update({key: None})
    assert tree.state == TreeState(ZERO32, None)
    tree.prune(tree.version)
    assert tree.nodes == {}


def test_a_lone_leaf_moves_up_past_all_the_levels_that_separated_it() -> None:
    tree = StoredTree()
    tree.update({KEYS[0]: b"a", KEYS[1]: b"b"})
    assert len(tree.nodes) == 256 + 2
    tree.update({KEYS[1]: None})
    assert tree.state.root == Leaf(KEYS[0], keccak(b"a")).hash
    assert tree.reachable(tree.state).keys() == {encode_key(NodeKey(0, 0, 1))}


def test_an_update_that_changes_nothing_writes_nothing() -> None:
    tree = StoredTree()
    tree.update({KEYS[6]: b"a", KEYS[7]: b"b"})
    for changes in ({}, {KEYS[6]: b"a"}, {KEYS[8]: None}, {KEYS[7]: b"b", KEYS[9]: None}):
        same = prepare(tree.state, tree.read, changes, 1)
        assert same == TreeUpdate(tree.state, {}, [])


def test_an_update_reads_and_writes_the_paths_it_touches_alone() -> None:
    tree = StoredTree()
    tree.update({keccak(bytes([number, 1])): b"x" for number in range(250)})
    reads: list[NodeKey] = []

    def read(key: NodeKey) -> Node:
        reads.append(key)
        return tree.read(key)

    prepared = prepare(tree.state, read, {keccak(bytes([7, 1])): b"y"}, 1)
    assert len(reads) == len(prepared.written) == len(prepared.stale) < 20


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"a tree key has 32 bytes, not {length}"):
        prepare(TreeState(), StoredTree().read, {bytes(length): b""}, 0)


@pytest.mark.parametrize("version", [0, 1])
def test_a_version_that_was_written_before_is_refused(version: int) -> None:
    tree = StoredTree()
    tree.update({})
    tree.update({KEYS[0]: b"a"})
    with pytest.raises(InvariantError, match=f"tree version {version} does not follow version 1"):
        prepare(tree.state, tree.read, {}, version)


def test_keys_are_ordered_by_place_and_then_by_version() -> None:
    keys = [NodeKey(0, 0, 300), NodeKey(1, 0, 2), NodeKey(1, 1, 1), NodeKey(2, 0, 0)]
    versions = [NodeKey(256, 2**256 - 1, version) for version in (0, 255, 256, 2**64 - 1)]
    encoded = [encode_key(key) for key in keys + versions]
    assert encoded == sorted(encoded)
    assert len(set(encoded)) == len(encoded)


@pytest.mark.parametrize(
    "node",
    [
        Leaf(KEYS[7], keccak(b"value")),
        Branch(Child(KEYS[6], 7), Child(KEYS[7], 2**64 - 1)),
        Branch(None, Child(KEYS[7], 0)),
        Branch(Child(KEYS[7], 0), None),
    ],
)
def test_a_node_survives_its_encoding_and_nothing_else_decodes(node: Node) -> None:
    data = encode_node(node)
    assert decode_node(data) == node
    for damaged in (data[:-1], data + b"\x00", b"\x02" + data[1:], b""):
        with pytest.raises(ValueError, match="not a tree node"):
            decode_node(damaged)
