"""A commitment store is opened whole, alone and by its own environment, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from app.chain import store_format
from app.chain.rocks import Rocks
from app.chain.sparse import NodeKey
from app.chain.store import CommitmentStore
from app.errors import StartRefused, StoreCorrupt, StoreFailed, WalLocked
from tests.support.store_blocks import apply, batches_of, command, open_store


def test_another_environment_is_refused(store: CommitmentStore, path: Path) -> None:
    store.close()
    with pytest.raises(StartRefused, match="'test', not 'production'"):
        CommitmentStore.open(path, "production", prune_window=1, pruning_enabled=False)
    open_store(path).close()


def test_a_newer_format_is_refused(store: CommitmentStore, path: Path) -> None:
    store.close()
    newer = {"format": store_format.FORMAT + 1, "environment": "any", "else": 1}
    edit(path, lambda database: database.write([(b"!cursor", store_format.encode(newer))]))
    with pytest.raises(StartRefused, match="newer release"):
        open_store(path)


def test_only_one_may_have_the_store_open(store: CommitmentStore, path: Path) -> None:
    with pytest.raises(WalLocked):
        open_store(path)


@pytest.mark.parametrize("name", ["OPTIONS*", "IDENTITY", "*.json", "LOG"])
def test_files_that_hold_no_data_are_not_needed(path: Path, name: str) -> None:
    build(path)
    without(name)(path)
    store = open_store(path)
    assert store.state.height == 3
    store.close()


def test_a_path_that_is_no_directory_is_an_operating_error(tmp_path: Path) -> None:
    (tmp_path / "commitments").write_bytes(b"")
    with pytest.raises(StoreFailed, match="commitments"):
        open_store(tmp_path / "commitments")


def test_a_closed_store_is_not_read_and_can_be_closed_again(store: CommitmentStore) -> None:
    apply(store, [command(0)])
    store.close()
    store.close()
    for read in (
        lambda: store.block(0),
        lambda: store.command_log(0, 0),
        store.authorities,
        lambda: store.read_node(NodeKey(0, 0, 0)),
        lambda: apply(store, [command(1)]),
    ):
        with pytest.raises(StoreFailed, match="is closed"):
            read()


def edit(path: Path, change: Callable[[Rocks], None]) -> None:
    database = Rocks.open(path)
    change(database)
    database.close()


def build(path: Path) -> None:
    store = open_store(path)
    for batch in batches_of(3, 1, 2):
        apply(store, batch)
    store.close()


def deleting(key: bytes) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda database: database.write([], [key]))


def setting(key: bytes, value: bytes) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda database: database.write([(key, value)]))


def without(pattern: str) -> Callable[[Path], None]:
    def unlink(path: Path) -> None:
        for file in path.glob(pattern):
            file.unlink()

    return unlink


def flipped(pattern: str) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        for file in path.glob(pattern):
            data = bytearray(file.read_bytes())
            data[len(data) // 3] ^= 1
            file.write_bytes(data)

    return flip


def emptied(pattern: str) -> Callable[[Path], None]:
    def empty(path: Path) -> None:
        for file in path.glob(pattern):
            file.write_bytes(b"")

    return empty


def exchange_blocks(path: Path) -> None:
    """Put block 0 in the place of block 1."""

    def change(database: Rocks) -> None:
        value = database.get(store_format.block_key(0))
        assert value is not None
        database.write([(store_format.block_key(1), value)])

    edit(path, change)


GLOBAL_NODE = store_format.tree_key(store_format.STATE_TREE, NodeKey(0, 0, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (deleting(b"!cursor"), "the cursor is missing"),
        (setting(b"!cursor", b"\xc1"), "the cursor does not decode"),
        (deleting(store_format.run_key(b"l", 2, 0)), "node 0 at level 2 of log 'l' is missing"),
        (setting(store_format.run_key(b"l", 1, 2), bytes(32)), "expected Roots"),
        (deleting(store_format.run_key(b"o", 2, 0)), "node 0 at level 2 of log 'o' is missing"),
        (deleting(GLOBAL_NODE), "the tree node .* is missing"),
        (setting(GLOBAL_NODE, b"?"), "does not decode"),
        (setting(GLOBAL_NODE, bytes(65)), "the root of tree 's': expected"),
        (deleting(store_format.block_key(2)), "block 2 is missing"),
        (deleting(store_format.block_key(0)), "block 0 is missing"),
        (setting(store_format.block_key(1), b"\x80"), "block 1 does not decode"),
        (exchange_blocks, "block 0: block_hash: expected"),
        (setting(b"!synced", (4).to_bytes(8, "big")), "4 blocks were durable, 3 are there"),
        (without("CURRENT"), "CURRENT is missing"),
        (without("*.sst"), "No such file"),
        (without("MANIFEST*"), "No such file"),
        (flipped("MANIFEST*"), "Corruption"),
        (flipped("CURRENT"), "CURRENT file corrupted"),
        (flipped("*.sst"), "Corruption"),
        (emptied("CURRENT"), "Corruption"),
        (emptied("*.sst"), "Corruption"),
    ],
)
def test_a_damaged_store_is_noticed_when_opened_and_can_be_rebuilt(
    path: Path, damage: Callable[[Path], None], message: str
) -> None:
    build(path)
    damage(path)
    with pytest.raises(StoreCorrupt, match=message) as caught:
        open_store(path)
    assert "journal commitments rebuild" in str(caught.value)
    assert str(path) in str(caught.value)


def test_blocks_before_the_last_sync_are_not_read_again(path: Path) -> None:
    build(path)
    store = open_store(path)
    store.sync()
    apply(store, [command(9)])
    store.close()
    deleting(store_format.block_key(0))(path)
    store = open_store(path)
    assert store.state.height == 4
    with pytest.raises(StoreCorrupt, match="block 0 is missing"):
        store.block(0)
    store.close()
    deleting(store_format.block_key(2))(path)
    with pytest.raises(StoreCorrupt, match="block 2 is missing"):
        open_store(path)


def test_a_creation_that_was_cut_off_is_begun_again(path: Path) -> None:
    path.mkdir(parents=True)
    for name in ("LOCK", "LOG", "IDENTITY", "MANIFEST-000001", "000001.dbtmp"):
        (path / name).touch()
    store = open_store(path)
    apply(store, [command(0)])
    store.close()
