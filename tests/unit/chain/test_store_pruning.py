"""The commitment store keeps the tree versions of its window, and nothing that only older need."""

from pathlib import Path

import pytest

from app.chain import sparse
from app.chain.sparse import Branch, NodeKey, TreeState
from app.chain.store import CommitmentStore
from app.errors import InvariantError, StoreCorrupt
from tests.support.store_blocks import (
    ENVIRONMENT,
    apply,
    command,
    open_store,
    prepare,
    with_leaves,
)
from tests.unit.chain import reference


class Forest:
    """State and risk trees of many leaves, changed at random places, in a pruned store."""

    def __init__(self, path: Path, window: int | None) -> None:
        self.path = path
        self.store = open_store(path, window)
        self.tops: list[tuple[TreeState, TreeState]] = []
        self.written: tuple[set[NodeKey], set[NodeKey]] = (set(), set())

    def grow(self, *versions: int) -> None:
        for version in versions:
            state, risk = (
                sparse.prepare(top, read, self.changes(version, salt), version)
                for salt, (top, read) in enumerate(
                    [
                        (self.store.state.state, self.store.read_node),
                        (self.store.state.risk, self.store.read_risk_node),
                    ]
                )
            )
            batch = [command(version)]
            block = prepare(self.store, batch)._replace(state=state)
            apply(self.store, batch, prepared=with_leaves(block, state=state, risk=risk))
            self.tops.append((state.state, risk.state))
            self.written[0].update(state.written)
            self.written[1].update(risk.written)

    def reopen(self, window: int | None) -> None:
        self.store.close()
        self.store = open_store(self.path, window)

    def changes(self, version: int, salt: int) -> dict[bytes, bytes | None]:
        """Sets two of 16 leaves and, at times, deletes one."""
        return {
            reference.keccak(bytes([salt, version * step % 16])): value
            for step, value in ((7, bytes([version])), (3, b"x"), (5, None))
        }

    def needed(self, *versions: int) -> tuple[set[NodeKey], set[NodeKey]]:
        keys: tuple[set[NodeKey], set[NodeKey]] = (set(), set())
        readers = self.store.read_node, self.store.read_risk_node
        for version in versions:
            for top, read, found in zip(self.tops[version], readers, keys, strict=True):
                if top.version is not None:
                    _collect(read, NodeKey(0, 0, top.version), found)
        return keys

    def kept(self) -> tuple[set[NodeKey], set[NodeKey]]:
        """Which of the nodes that were ever written can still be read."""
        readers = self.store.read_node, self.store.read_risk_node
        state, risk = (
            {key for key in written if _is_there(read, key)}
            for written, read in zip(self.written, readers, strict=True)
        )
        return state, risk


def _is_there(read: sparse.TreeReader, key: NodeKey) -> bool:
    try:
        read(key)
    except StoreCorrupt:
        return False
    return True


def _collect(read: sparse.TreeReader, key: NodeKey, found: set[NodeKey]) -> None:
    found.add(key)
    node = read(key)
    if isinstance(node, Branch):
        for bit, child in enumerate((node.left, node.right)):
            if child is not None:
                place = NodeKey(key.depth + 1, key.path << 1 | bit, child.version)
                _collect(read, place, found)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_pruning_leaves_what_the_kept_versions_need_and_nothing_else(
    path: Path, window: int
) -> None:
    forest = Forest(path, window)
    for version in range(20):
        forest.grow(version)
        kept = range(max(version - window + 1, 0), version + 1)
        assert forest.kept() == forest.needed(*kept)
    forest.store.close()


def test_without_pruning_every_version_can_be_read(path: Path) -> None:
    forest = Forest(path, None)
    forest.grow(*range(20))
    assert forest.kept() == forest.needed(*range(20)) == forest.written
    forest.store.close()


def test_pruning_that_is_turned_on_later_works_off_what_has_gathered(path: Path) -> None:
    forest = Forest(path, None)
    forest.grow(*range(20))
    forest.reopen(3)
    forest.grow(20, 21)
    assert forest.kept() != forest.needed(19, 20, 21)
    forest.grow(22)
    assert forest.kept() == forest.needed(20, 21, 22)
    forest.reopen(3)
    forest.grow(23)
    assert forest.kept() == forest.needed(21, 22, 23)
    forest.store.close()


def test_a_window_of_no_version_is_not_possible(path: Path) -> None:
    with pytest.raises(InvariantError):
        CommitmentStore.open(path, ENVIRONMENT, prune_window=0, pruning_enabled=True)
