"""What is applied to the commitment store is read again, whole, by any thread."""

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

from app.chain import merkle, rocks, store_format
from app.chain.bulk import split
from app.chain.header import Delegation
from app.chain.merkle import LogReader, consistency_proof, inclusion_proof
from app.chain.pipeline import ChainState
from app.chain.store import CommitmentStore, StoredBlock
from app.errors import InvariantError, StoreCorrupt, StoreFailed
from tests.support.store_blocks import (
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
        for index, node in enumerate(split(run.hashes)):
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
