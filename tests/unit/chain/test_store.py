import stat
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from threading import Thread
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.chain import merkle, rocks, sparse, store_format
from app.chain.header import Delegation
from app.chain.merkle import LogReader, consistency_proof, inclusion_proof
from app.chain.pipeline import ChainState
from app.chain.rocks import Rocks
from app.chain.sparse import Branch, NodeKey, TreeState
from app.chain.store import CommitmentStore, StoredBlock
from app.errors import (
    InvariantError,
    StartRefused,
    StoreCorrupt,
    StoreFailed,
    WalLocked,
)
from tests.support.store_blocks import (
    ENVIRONMENT,
    RECORD_BYTES,
    WAL_ID,
    apply,
    batches_of,
    command,
    commands_of,
    open_store,
    prepare,
    with_leaves,
)
from tests.unit.chain import reference


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "commitments"


@pytest.fixture
def store(path: Path) -> Iterator[CommitmentStore]:
    opened = open_store(path)
    yield opened
    opened.close()


def reopened(store: CommitmentStore, path: Path) -> CommitmentStore:
    store.close()
    return open_store(path)


def delegation(number: int) -> Delegation:
    return Delegation(
        delegator=b"\x01" * 20,
        delegate=number.to_bytes(20, "big"),
        valid_from=number,
        valid_until=number + 1,
        signature=bytes(65),
    )


# What is stored, and read again.


def test_a_new_store_is_empty(store: CommitmentStore) -> None:
    assert store.state == ChainState()
    assert (store.wal_id, store.wal_offset) == (None, 0)
    assert store.latest() is None
    assert store.block(0) is None
    assert store.blocks(None, 10, descending=False) == []
    assert store.blocks(None, 10, descending=True) == []
    assert store.commands(0) == []
    assert store.leaf_of(bytes(16)) is None
    assert store.height_of_leaf(0) is None
    assert store.authorities() == []


def test_a_store_opened_again_stands_where_it_was(store: CommitmentStore, path: Path) -> None:
    store = reopened(store, path)
    assert store.state == ChainState()
    for batch in batches_of(3, 1, 8):
        apply(store, batch)
        state, latest = store.state, store.latest()
        store = reopened(store, path)
        assert (store.state, store.latest()) == (state, latest)
        assert (store.wal_id, store.wal_offset) == (WAL_ID, state.height * RECORD_BYTES)
    store.close()


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_proofs_from_the_store_are_those_of_the_page(sizes: list[int]) -> None:
    batches = batches_of(*sizes)
    entries = [entry for batch in batches for entry in batch]
    identities = [reference.identity(e.request_uuid.bytes, e.command_data) for e in entries]
    events = [
        reference.event_hash(e.event_topic, None, e.event_data, None, e.event_type)
        for entry in entries
        for e in entry.events
    ]
    with TemporaryDirectory() as directory:
        store = open_store(Path(directory))
        for batch in batches:
            apply(store, batch)
        check_proofs(store.command_log, identities)
        store = reopened(store, Path(directory))
        check_proofs(store.command_log, identities)
        check_proofs(store.intent_log, identities)
        check_proofs(store.obligation_log, events)
        store.close()


def check_proofs(read: LogReader, leaves: list[bytes]) -> None:
    for size in range(1, len(leaves) + 1):
        for index in range(size):
            expected = reference.inclusion_path(index, leaves[:size])
            assert inclusion_proof(read, index, size) == expected
        for first in range(1, size + 1):
            expected = reference.consistency_path(first, leaves[:size])
            assert consistency_proof(read, first, size) == expected


def test_the_runs_of_a_large_block_are_read_in_parts(store: CommitmentStore) -> None:
    sizes = (3, 3 * store_format.RUN_NODES + 5, 2)
    batches = batches_of(*sizes)
    leaves = []
    for batch in batches:
        leaves += prepare(store, batch).identities
        apply(store, batch)
    log = merkle.append(merkle.LogState(), leaves)
    for run in log.runs:
        for index, node in enumerate(run.hashes):
            assert store.command_log(run.level, index) == node
    with pytest.raises(StoreCorrupt, match="is missing"):
        store.command_log(0, sum(sizes))


def test_blocks_are_kept_with_signature_roots_and_ids(store: CommitmentStore, path: Path) -> None:
    expected = []
    for number, batch in enumerate(batches_of(2, 1, 4)):
        block, commands = prepare(store, batch), commands_of(store, batch)
        header = apply(store, batch, signature=bytes([number]) * 65)
        expected.append(
            StoredBlock(
                header=header,
                roots=block.roots,
                block_hash=block.digest,
                first_command_id=commands[0].command_id,
                last_command_id=commands[-1].command_id,
            )
        )
        assert store.latest() == expected[-1]
    store = reopened(store, path)
    assert store.latest() == expected[-1]
    assert [store.block(height) for height in range(-1, 4)] == [None, *expected, None]
    store.close()


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_blocks_are_paged_in_both_orders(store: CommitmentStore, limit: int) -> None:
    for batch in batches_of(*[1] * 5):
        apply(store, batch)
    heights = list(range(5))

    def page(after: int | None, *, descending: bool) -> list[int]:
        found = store.blocks(after, limit, descending=descending)
        return [block.header.batch_seq for block in found]

    assert page(None, descending=False) == heights[:limit]
    assert page(None, descending=True) == heights[::-1][:limit]
    for after in range(-2, 8):
        assert page(after, descending=False) == [h for h in heights if h > after][:limit]
        assert page(after, descending=True) == [h for h in heights[::-1] if h < after][:limit]


def test_commands_are_found_by_block_request_and_leaf(store: CommitmentStore, path: Path) -> None:
    expected = []
    batches = batches_of(2, 1, 4)
    batches[1][0].command_type = "Ångström"
    for batch in batches:
        expected.append(commands_of(store, batch))
        apply(store, batch)
    store = reopened(store, path)
    assert [store.commands(height) for height in range(4)] == [*expected, []]
    for height, commands in enumerate(expected):
        for one in commands:
            assert store.leaf_of(one.request_uuid) == (one.leaf_index, one.identity)
            assert store.height_of_leaf(one.leaf_index) == height
    assert store.height_of_leaf(-1) is None
    assert store.height_of_leaf(7) is None
    for number in (7, 2**127):
        assert store.leaf_of(UUID(int=number).bytes) is None
    store.close()


def test_a_request_that_comes_again_keeps_its_first_leaf(store: CommitmentStore) -> None:
    first, again = command(1), command(1)
    again.command_data = b"other"
    apply(store, [command(0), first])
    identity = store.commands(0)[1].identity
    apply(store, [again, again, command(2)])
    assert store.leaf_of(first.request_uuid.bytes) == (1, identity)
    assert [c.request_uuid for c in store.commands(1)][:2] == [first.request_uuid.bytes] * 2


def test_delegations_are_given_newest_first(store: CommitmentStore, path: Path) -> None:
    given = [None, delegation(1), None, delegation(2), delegation(3)]
    for batch, authority in zip(batches_of(*[1] * 5), given, strict=True):
        apply(store, batch, authority=authority)
    store = reopened(store, path)
    assert store.authorities() == [delegation(3), delegation(2), delegation(1)]
    store.close()


def test_an_intent_log_of_its_own_is_kept_beside_the_command_log(
    store: CommitmentStore, path: Path
) -> None:
    batches = batches_of(3, 2, 4)
    leaves = list(prepare(store, batches[0]).identities)
    apply(store, batches[0])
    for batch in batches[1:]:
        intents = merkle.append(store.state.intents, [b"own", *prepare(store, batch).identities])
        leaves += [b"own", *prepare(store, batch).identities]
        apply(store, batch, prepared=with_leaves(prepare(store, batch), intents=intents))
    state = store.state
    store = reopened(store, path)
    assert store.state == state
    check_proofs(store.intent_log, leaves)
    check_proofs(store.command_log, [c.identity for h in range(3) for c in store.commands(h)])
    store.close()


# Tree versions.


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


# What is not applied.


def test_a_block_that_does_not_follow_is_not_applied(store: CommitmentStore, path: Path) -> None:
    first, second = batches_of(2, 2)
    block = prepare(store, first)
    commands = commands_of(store, first)
    apply(store, first)
    state, offset = store.state, store.wal_offset
    own = prepare(store, second), commands_of(store, second)
    other = replace(own[0].header, timestamp=own[0].header.timestamp + 1)
    for faulty, header, listed, end, message in [
        (block, block.header, commands, offset + 1, "does not follow"),
        (own[0], other, own[1], offset + 1, "not the header"),
        (own[0], own[0].header, own[1][:1], offset + 1, "not the commands"),
        (own[0], own[0].header, commands, offset + 1, "not the commands"),
        (own[0], own[0].header, own[1], offset, "behind"),
    ]:
        with pytest.raises(InvariantError, match=message):
            store.apply(faulty, header, None, listed, WAL_ID, end)
    store = reopened(store, path)
    assert (store.state, store.wal_offset) == (state, offset)
    store.apply(own[0], own[0].header, None, own[1], "a new log", 1)
    assert (store.wal_id, store.wal_offset) == ("a new log", 1)
    store.close()


# Opening.


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


def test_nobody_else_may_read_the_store(path: Path) -> None:
    path.mkdir(parents=True)
    path.chmod(0o755)
    store = open_store(path)
    apply(store, [command(0)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store.close()


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


# Threads.


def test_a_store_is_closed_and_opened_anew_under_its_readers(path: Path) -> None:
    store = open_store(path)
    apply(store, [command(0)])
    stores = [store]
    done = Flag()
    faults: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                assert check_newest(stores[-1]) == 0
            except StoreFailed:
                continue
            except Exception as error:  # noqa: BLE001 - the test fails with it
                faults.append(error)

    threads = [Thread(target=read), Thread(target=read)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        stores[-1].close()
        stores.append(open_store(path))
    done.set()
    for thread in threads:
        thread.join()
    stores[-1].close()
    assert faults == []


def test_readers_in_other_threads_never_see_a_part_of_a_block(path: Path) -> None:
    store = open_store(path, prune_window=2)
    done = Flag()
    faults: list[Exception] = []
    seen: list[int] = []

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(check_newest(store))
        except Exception as error:  # noqa: BLE001 - the test fails with it
            faults.append(error)

    def sync() -> None:
        while not done.is_set():
            store.sync()

    threads = [Thread(target=read), Thread(target=read), Thread(target=sync)]
    for thread in threads:
        thread.start()
    for batch in batches_of(*[7] * 300):
        apply(store, batch)
    done.set()
    for thread in threads:
        thread.join()
    store.close()
    assert faults == []
    assert len(set(seen)) > 3


def check_newest(store: CommitmentStore) -> int:
    """Everything about the newest block fits together; returns its height."""
    latest = store.latest()
    if latest is None:
        return -1
    header = latest.header
    size = header.first_seq + header.command_count
    commands = store.commands(header.batch_seq)
    assert [c.leaf_index for c in commands] == list(range(header.first_seq, size))
    assert store.leaf_of(commands[0].request_uuid) == (header.first_seq, commands[0].identity)
    assert store.height_of_leaf(size - 1) == header.batch_seq
    path = inclusion_proof(store.command_log, size - 1, size)
    root = latest.roots.command_root
    assert merkle.verify_inclusion(commands[-1].identity, size - 1, size, path, root)
    assert store.state.height > header.batch_seq
    newest = store.blocks(None, 3, descending=True)
    for block, before in pairwise(newest):
        assert block.header.prev_block_hash == before.block_hash
    return header.batch_seq


def test_full_write_buffers_are_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rocks, "_WRITE_BUFFER_BYTES", 64 * 1024)
    monkeypatch.setattr(rocks, "_WRITE_BUFFERS", 2)
    store = open_store(path)
    for batch in batches_of(*[100] * 60):
        apply(store, batch)
    state = store.state
    store = reopened(store, path)
    assert store.state == state
    assert len(store.blocks(None, 100, descending=False)) == 60
    store.close()


def test_write_buffers_are_exchanged_before_they_are_full(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rocks, "_BUFFERED_BYTES", 16 * 1024)
    store = open_store(path)
    for batch in batches_of(*[100] * 20):
        apply(store, batch)
    assert list(path.glob("*.sst"))
    store.close()
