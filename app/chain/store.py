"""The commitment store: every block, and all that proofs and the next block need.

It is derived from the log, so its writes are not synced one by one: after a power cut it stands at
an older block and is caught up. A block is applied in one write, and published to readers by one
assignment after that: what is read here is never half of a block, nor ahead of `state`.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Final, Self

from app.chain.hashing import u64
from app.chain.header import Delegation, Header, block_hash
from app.chain.pipeline import ChainState, PreparedBlock
from app.chain.rocks import Rocks
from app.chain.sparse import Node, NodeKey, encode_node
from app.chain.store_format import (
    COMMAND_LOG,
    CURSOR,
    INTENT_LOG,
    OBLIGATION_LOG,
    RISK_TREE,
    SEEN,
    STATE_TREE,
    SYNCED,
    BlockCommand,
    Cursor,
    Seen,
    StoredBlock,
    authority_key,
    block_key,
    commands_key,
    decode_commands,
    decode_delegation,
    decode_height,
    decode_identity,
    encode,
    encode_commands,
    leaf_of_key,
    split_runs,
    split_tree_keys,
    stale_key,
    tree_key,
    uuid_key,
)
from app.chain.store_reading import Applied, StoreReader, load, read_cursor, read_seen
from app.errors import InvariantError

__all__ = ["BlockCommand", "CommitmentStore", "Seen", "StoredBlock"]

# A block adds one version; a backlog, left by a time without pruning, goes by so many a block.
_PRUNED_PER_BLOCK: Final = 8


class CommitmentStore:
    """One thread applies; any thread reads and syncs.

    Reads raise `StoreCorrupt` for what is missing or does not decode, and `StoreFailed` when the
    store can't be read or has been closed.
    """

    def __init__(
        self,
        rocks: Rocks,
        environment: str,
        applied: Applied,
        pruned: int,
        prune_window: int | None,
        seen: Seen | None,
    ) -> None:
        self._rocks = rocks
        self._reader = StoreReader(rocks)
        self._environment = environment
        self._applied = applied
        self._pruned = pruned
        self._prune_window = prune_window
        self._seen = seen
        self._synced: int | None = None
        self._syncing = Lock()

    @classmethod
    def open(
        cls, path: Path, environment: str, *, prune_window: int, pruning_enabled: bool
    ) -> Self:
        """Open the store in directory `path`, or create it, and check that it fits together.

        `prune_window` is the number of newest tree versions that are kept when pruning is enabled.
        Raises `StartRefused` for another environment or a newer format, `StoreCorrupt` for a store
        that contradicts itself, `StoreFull`, `StoreFailed` and `WalLocked`.
        """
        if prune_window < 1:
            raise InvariantError(f"a prune window of {prune_window} versions")
        rocks = Rocks.open(path)
        try:
            cursor = read_cursor(rocks, environment)
            applied = load(StoreReader(rocks), cursor)
            seen = read_seen(StoreReader(rocks))
        except BaseException:
            rocks.close()
            raise
        window = prune_window if pruning_enabled else None
        return cls(rocks, environment, applied, cursor.pruned, window, seen)

    @property
    def path(self) -> Path:
        """The directory it is in."""
        return self._rocks.path

    @property
    def state(self) -> ChainState:
        """The chain's state after the newest applied block: what the next is built upon."""
        return self._applied.state

    @property
    def wal_id(self) -> str | None:
        """The log of the newest applied block; None before the first."""
        return self._applied.wal_id

    @property
    def wal_offset(self) -> int:
        """The end of the record of the newest applied block; 0 before the first."""
        return self._applied.wal_offset

    def reached(self, wal_id: str) -> int | None:
        """The offset up to which this surely holds every block of a log; None: it knows nothing."""
        offsets = [self.wal_offset] if self.wal_id == wal_id else []
        if self._seen is not None and self._seen.wal_id == wal_id:
            offsets.append(self._seen.wal_offset)
        return max(offsets, default=None)

    def apply(
        self,
        block: PreparedBlock,
        header: Header,
        authority: Delegation | None,
        commands: Sequence[BlockCommand],
        wal_id: str,
        wal_offset: int,
    ) -> None:
        """Add a block whose record, ending at `wal_offset`, is durable; not synced.

        `header` is the block's, signed. Raises `StoreFull` and `StoreFailed`: the state stays as it
        is, and nothing is applied until the store is opened anew, which may find the block in it.
        Raises `InvariantError` for what is not the next block; that changes nothing.
        """
        before = self._applied
        _check_fits(before, block, header, commands, wal_id, wal_offset)
        stored = StoredBlock(
            header=header,
            roots=block.roots,
            block_hash=block.digest,
            first_command_id=commands[0].command_id,
            last_command_id=commands[-1].command_id,
        )
        height = header.batch_seq
        stale = [
            tree_key(tree, key)
            for tree, update in ((STATE_TREE, block.state), (RISK_TREE, block.risk))
            for key in update.stale
        ]
        pruned, deletes = self._prune(height, stale)
        after = Applied(block.after, stored, wal_id, wal_offset)
        puts = [
            (block_key(height), encode(stored)),
            (commands_key(header.first_seq), encode_commands(height, commands, block.identities)),
            *[(uuid_key(c.request_uuid, c.leaf_index), b"") for c in commands],
            *_nodes(block),
            (CURSOR, encode(_cursor(after, self._environment, pruned))),
        ]
        if stale and pruned <= height:
            puts.append((stale_key(height), b"".join(stale)))
        if authority is not None:
            puts.append((authority_key(height), encode(authority)))
        self._rocks.write(puts, deletes)
        self._pruned = pruned
        self._applied = after

    def sync(self, seen: Seen | None = None) -> None:
        """Make all that was applied before this call durable. Any thread.

        `seen` is how far the log had been applied before this call, where the caller knows. Raises
        `StoreFull` and `StoreFailed`: the store must be opened anew.
        """
        with self._syncing:
            height, seen = self.state.height, seen or self._seen
            if (height, seen) != (self._synced, self._seen):
                marks = [(SYNCED, u64(height))]
                if seen is not None:
                    marks.append((SEEN, encode(seen)))
                self._rocks.write(marks)
                self._rocks.sync()
                self._synced, self._seen = height, seen

    def close(self) -> None:
        """Sync and close; a second time does nothing. Silent after a write or sync has failed."""
        self._rocks.close()

    def read_node(self, key: NodeKey) -> Node:
        """Read a node of the state tree: the `TreeReader` of the next block."""
        return self._reader.tree_node(STATE_TREE, key)

    def read_risk_node(self, key: NodeKey) -> Node:
        """Read a node of the risk tree."""
        return self._reader.tree_node(RISK_TREE, key)

    def command_log(self, level: int, index: int) -> bytes:
        """Read a complete node of the command log: a `LogReader`."""
        return self._reader.command_node(level, index)

    def obligation_log(self, level: int, index: int) -> bytes:
        """Read a complete node of the obligation log: a `LogReader`."""
        return self._reader.obligation_node(level, index)

    def intent_log(self, level: int, index: int) -> bytes:
        """Read a complete node of the intent log: a `LogReader`."""
        return self._reader.intent_node(level, index)

    def latest(self) -> StoredBlock | None:
        """The newest block; None before the first."""
        return self._applied.latest

    def block(self, height: int) -> StoredBlock | None:
        """The block at a height; None when there is none."""
        if not 0 <= height < self.state.height:
            return None
        return self._reader.blocks([height])[0]

    def blocks(self, after: int | None, limit: int, *, descending: bool) -> list[StoredBlock]:
        """Up to `limit` blocks that follow the height `after` in the order asked for.

        None begins with the first block, or with the newest when `descending`.
        """
        end = self.state.height
        if descending:
            stop = end if after is None else min(after, end)
            return self._reader.blocks(reversed(range(max(stop - limit, 0), stop)))
        start = 0 if after is None else max(after + 1, 0)
        return self._reader.blocks(range(start, min(start + limit, end)))

    def commands(self, height: int) -> list[BlockCommand]:
        """The commands of a block, in their order; none when there is no such block."""
        return list(self.each_command(height))

    def each_command(self, height: int) -> Iterator[BlockCommand]:
        """The same one by one, read at once and each decoded when it is asked for."""
        block = self.block(height)
        if block is None:
            return iter(())
        first_leaf = block.header.first_seq
        value = self._rocks.get(commands_key(first_leaf))
        what = f"the commands of block {height}"
        if value is None:
            raise self._reader.missing(what)
        return self._reader.decoded(lambda v: decode_commands(v, first_leaf), value, what)

    def leaf_of(self, request_uuid: bytes) -> tuple[int, bytes] | None:
        """The first leaf of a `request_uuid` in the command log, and its identity hash."""
        pair = self._rocks.at_or_after(uuid_key(request_uuid, 0))
        leaf = None if pair is None else leaf_of_key(pair[0], request_uuid)
        if leaf is None or leaf >= self.state.first_seq:
            return None
        first_leaf, value = self._reader.commands_around(leaf)
        what = f"the commands from leaf {first_leaf} on"
        identity = self._reader.decoded(
            lambda v: decode_identity(v, leaf - first_leaf), value, what
        )
        return leaf, identity

    def height_of_leaf(self, leaf_index: int) -> int | None:
        """The height of the block that appended a leaf of the command log; None when none has."""
        if not 0 <= leaf_index < self.state.first_seq:
            return None
        first_leaf, value = self._reader.commands_around(leaf_index)
        what = f"the commands from leaf {first_leaf} on"
        return self._reader.decoded(decode_height, value, what)

    def authorities(self) -> list[Delegation]:
        """All delegations, the newest first."""
        height = self.state.height
        if not height:
            return []
        values = self._rocks.backwards(authority_key(height - 1), authority_key(0))
        decoded = self._reader.decoded
        return [decoded(decode_delegation, value, "a delegation") for value in values]

    def _prune(self, height: int, stale: list[bytes]) -> tuple[int, list[bytes]]:
        """What to delete with block `height`, which makes `stale` obsolete; and `Cursor.pruned`."""
        pruned = self._pruned
        if self._prune_window is None:
            return pruned, []
        deletes: list[bytes] = []
        # The oldest kept version is the one up to which obsolete nodes are needed by none.
        last = min(height - self._prune_window + 1, pruned + _PRUNED_PER_BLOCK - 1)
        for version in range(pruned, last + 1):
            if version == height:
                deletes += stale
                continue
            value = self._rocks.get(stale_key(version))
            if value is not None:
                deletes += [stale_key(version), *split_tree_keys(value)]
        return max(pruned, last + 1), deletes


def _check_fits(
    before: Applied,
    block: PreparedBlock,
    header: Header,
    commands: Sequence[BlockCommand],
    wal_id: str,
    wal_offset: int,
) -> None:
    """Check what the writer must hold to. Raises `InvariantError`."""
    state = before.state
    if (header.batch_seq, header.prev_block_hash) != (state.height, state.prev_block_hash):
        raise InvariantError(f"block {header.batch_seq} does not follow block {state.height - 1}")
    if block_hash(header) != block.digest:
        raise InvariantError(f"block {header.batch_seq}: not the header that was prepared")
    if [command.leaf_index for command in commands] != list(
        range(header.first_seq, header.first_seq + header.command_count)
    ):
        raise InvariantError(f"block {header.batch_seq}: not the commands it was prepared from")
    if wal_id == before.wal_id and wal_offset <= before.wal_offset:
        raise InvariantError(
            f"block {header.batch_seq} at offset {wal_offset}, behind {before.wal_offset}"
        )


def _nodes(block: PreparedBlock) -> list[tuple[bytes, bytes]]:
    """The log and tree nodes that a block adds."""
    return [
        *split_runs(COMMAND_LOG, block.commands.runs),
        *split_runs(OBLIGATION_LOG, block.obligations.runs),
        *(() if block.intents is block.commands else split_runs(INTENT_LOG, block.intents.runs)),
        *chain.from_iterable(
            [(tree_key(tree, key), encode_node(node)) for key, node in update.written.items()]
            for tree, update in ((STATE_TREE, block.state), (RISK_TREE, block.risk))
        ),
    ]


def _cursor(applied: Applied, environment: str, pruned: int) -> Cursor:
    state = applied.state
    return Cursor(
        environment=environment,
        wal_id=applied.wal_id,
        wal_offset=applied.wal_offset,
        height=state.height,
        prev_block_hash=state.prev_block_hash,
        commands=state.commands.size,
        obligations=state.obligations.size,
        intents=state.intents.size,
        state_root=state.state.root,
        state_version=state.state.version,
        risk_root=state.risk.root,
        risk_version=state.risk.version,
        pruned=pruned,
    )
