"""Batches whose block commands make a chain, without a store and without real signatures."""

from collections.abc import Iterable

from msgspec.structs import replace

from app.chain.content import block_indices
from app.chain.header import NO_SIGNER, Delegation, block_hash
from app.chain.pipeline import ChainState, PreparedBlock, prepare_block
from app.chain.sparse import Node, NodeKey
from app.model.entry import Entry
from app.wal.record import Batch

BLOCK_COMMANDS = frozenset({"TickSnapshot"})
SIGNER = b"\x51" * 20


class BlockChain:
    """Makes one batch after the other; `command_id`s follow each other without gaps."""

    def __init__(self) -> None:
        self.state = ChainState()
        self.next_command_id = 1
        self._nodes: dict[NodeKey, Node] = {}

    def batch(
        self, *entries: Entry, signer: bytes = SIGNER, authority: Delegation | None = None
    ) -> Batch:
        """The next batch: a block where it holds a `TickSnapshot`."""
        first = self.next_command_id
        self.next_command_id += len(entries)
        batch = Batch(offset=0, first_command_id=first, commands=list(entries))
        indices = block_indices([entry.command_type for entry in entries], BLOCK_COMMANDS)
        if not indices:
            return batch
        commands = [entries[index] for index in indices]
        prepared = self.next_block(commands, entries[-1].received_ts_ms, signer)
        signature = b"" if signer == NO_SIGNER else block_hash(prepared.header) + b"\x07" * 33
        return replace(
            batch,
            header=replace(prepared.header, signature=signature),
            roots=prepared.roots,
            block_indices=indices,
            authority=authority,
        )

    def next_block(
        self, commands: Iterable[Entry], timestamp: int, signer: bytes = SIGNER
    ) -> PreparedBlock:
        """Prepare a block and go on behind it."""
        prepared = prepare_block(
            self.state, self._nodes.__getitem__, list(commands), timestamp, signer
        )
        self._nodes.update(prepared.state.written)
        self.state = prepared.after
        return prepared


def make_delegation(valid_from: int = 5, **fields: object) -> Delegation:
    """A delegation to `SIGNER` that nobody signed."""
    delegation = Delegation(
        delegator=b"\xc0" * 20,
        delegate=SIGNER,
        valid_from=valid_from,
        valid_until=valid_from + 1000,
        signature=b"\x0d" * 65,
    )
    return replace(delegation, **fields)
