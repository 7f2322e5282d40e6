"""Blocks of made-up commands, for the commitment store."""

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from msgspec.structs import replace

from app.chain import merkle, sparse
from app.chain.header import Delegation, Header, Roots, batch_root, block_hash
from app.chain.pipeline import PreparedBlock, prepare_block
from app.chain.store import BlockCommand, CommitmentStore
from app.model.entry import Entry, Event

ENVIRONMENT = "test"
WAL_ID = "a-log"
RECORD_BYTES = 100


def open_store(path: Path, prune_window: int | None = None) -> CommitmentStore:
    """Open a store that prunes when a window is given."""
    return CommitmentStore.open(
        path,
        ENVIRONMENT,
        prune_window=prune_window or 1,
        pruning_enabled=prune_window is not None,
    )


def command(number: int, events: int = 1) -> Entry:
    """A block command that differs from those of other numbers."""
    return Entry(
        request_uuid=UUID(int=number),
        received_ts_ms=number,
        command_type="TickSnapshot",
        command_data=number.to_bytes(8, "big"),
        events=[
            Event(event_topic="ticks", event_data=bytes([index]), event_type="Tick")
            for index in range(events)
        ],
    )


def batches_of(*sizes: int) -> list[list[Entry]]:
    """Batches of commands that all differ, with no event, one or two each."""
    batches, number = [], 0
    for size in sizes:
        batches.append([command(n, n % 3) for n in range(number, number + size)])
        number += size
    return batches


def prepare(store: CommitmentStore, batch: Sequence[Entry]) -> PreparedBlock:
    """The block that comes next in the store."""
    return prepare_block(store.state, store.read_node, batch, batch[-1].received_ts_ms)


def commands_of(store: CommitmentStore, batch: Sequence[Entry]) -> list[BlockCommand]:
    """The commands of the next block; one `command_id` in between is not of a block command."""
    first, block = store.state.first_seq, prepare(store, batch)
    return [
        BlockCommand(
            2 * (first + index) + 1,
            entry.request_uuid.bytes,
            entry.command_type or "",
            identity,
            first + index,
        )
        for index, (entry, identity) in enumerate(zip(batch, block.identities, strict=True))
    ]


def apply(
    store: CommitmentStore,
    batch: Sequence[Entry],
    *,
    prepared: PreparedBlock | None = None,
    signature: bytes = b"",
    authority: Delegation | None = None,
) -> Header:
    """Apply the next block: what the batch gives, or another that was prepared of it."""
    block = prepare(store, batch) if prepared is None else prepared
    header = replace(block.header, signature=signature)
    store.apply(
        block,
        header,
        authority,
        commands_of(store, batch),
        WAL_ID,
        store.wal_offset + RECORD_BYTES,
    )
    return header


def with_leaves(
    block: PreparedBlock,
    *,
    state: sparse.TreeUpdate | None = None,
    risk: sparse.TreeUpdate | None = None,
    intents: merkle.LogAppend | None = None,
) -> PreparedBlock:
    """The block, had other materializers given these trees or this intent log."""
    state, risk = state or block.state, risk or block.risk
    intents = intents or block.intents
    roots = Roots(
        state_root=state.state.root,
        risk_root=risk.state.root,
        command_root=block.roots.command_root,
        obligation_root=block.roots.obligation_root,
        intent_root=intents.state.root,
    )
    header = replace(block.header, batch_root=batch_root(block.header.batch_seq, roots))
    after = block.after._replace(
        prev_block_hash=block_hash(header),
        state=state.state,
        risk=risk.state,
        intents=intents.state,
    )
    return block._replace(
        header=header,
        digest=block_hash(header),
        roots=roots,
        intents=intents,
        state=state,
        risk=risk,
        after=after,
    )
