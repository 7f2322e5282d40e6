"""Reading the commitment store's blocks and nodes, and the check of a store when it is opened.

What is missing or does not decode raises `StoreCorrupt`; no read knows how far the chain goes.
"""

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeVar

import msgspec

from app.chain.hashing import ZERO32
from app.chain.header import Roots, batch_root, block_hash
from app.chain.merkle import LogReader, LogState
from app.chain.pipeline import ChainState
from app.chain.rocks import Rocks
from app.chain.sparse import Node, NodeKey, TreeState, decode_node
from app.chain.store_format import (
    COMMAND_LOG,
    CURSOR,
    FORMAT,
    INTENT_LOG,
    OBLIGATION_LOG,
    RISK_TREE,
    SEEN,
    STATE_TREE,
    SYNCED,
    Cursor,
    Seen,
    StoredBlock,
    block_key,
    commands_key,
    decode_block,
    decode_cursor,
    decode_owner,
    decode_seen,
    encode,
    first_leaf_of_key,
    node_in_run,
    run_key,
    tree_key,
)
from app.errors import StartRefused, StoreCorrupt

_PAGE: Final = 256
T = TypeVar("T")


class Applied(NamedTuple):
    """How far a store goes: what readers may see, exchanged as one."""

    state: ChainState
    latest: StoredBlock | None
    wal_id: str | None
    wal_offset: int


class StoreReader:
    """Reads single things of a store."""

    def __init__(self, rocks: Rocks) -> None:
        self.rocks = rocks

    def blocks(self, heights: Iterable[int]) -> list[StoredBlock]:
        """The blocks at these heights."""
        wanted = list(heights)
        values = self.rocks.get_all([block_key(height) for height in wanted])
        found = []
        for height, value in zip(wanted, values, strict=True):
            if value is None:
                raise self.missing(f"block {height}")
            found.append(self.decoded(decode_block, value, f"block {height}"))
        return found

    def commands_around(self, leaf: int) -> tuple[int, bytes]:
        """The encoded commands of the block that appended a leaf, and the first leaf of theirs."""
        pair = self.rocks.at_or_before(commands_key(leaf))
        first_leaf = None if pair is None else first_leaf_of_key(pair[0])
        if pair is None or first_leaf is None:
            raise self.missing(f"the command at leaf {leaf}")
        return first_leaf, pair[1]

    def tree_node(self, tree: bytes, key: NodeKey) -> Node:
        """A node of a tree."""
        what = f"the tree node {tuple(key)}"
        value = self.rocks.get(tree_key(tree, key))
        if value is None:
            raise self.missing(what)
        return self.decoded(decode_node, value, what)

    def command_node(self, level: int, index: int) -> bytes:
        """A complete node of the command log."""
        return self._log_node(COMMAND_LOG, level, index)

    def obligation_node(self, level: int, index: int) -> bytes:
        """A complete node of the obligation log."""
        return self._log_node(OBLIGATION_LOG, level, index)

    def intent_node(self, level: int, index: int) -> bytes:
        """A complete node of the intent log, which is the command log where it has none."""
        node = self._find_log_node(INTENT_LOG, level, index)
        return self.command_node(level, index) if node is None else node

    def decoded(self, decode: Callable[[bytes], T], value: bytes, what: str) -> T:
        """Decode a value; msgspec's errors are `ValueError`s as well."""
        try:
            return decode(value)
        except ValueError as error:
            raise self.corrupt(f"{what} does not decode: {error}") from error

    def missing(self, what: str) -> StoreCorrupt:
        """The error for what must be there."""
        return self.corrupt(f"{what} is missing")

    def corrupt(self, reason: str) -> StoreCorrupt:
        """The error for a contradiction."""
        return StoreCorrupt(str(self.rocks.path), reason)

    def _log_node(self, log: bytes, level: int, index: int) -> bytes:
        node = self._find_log_node(log, level, index)
        if node is None:
            raise self.missing(f"the node {index} at level {level} of log {log.decode()!r}")
        return node

    def _find_log_node(self, log: bytes, level: int, index: int) -> bytes | None:
        wanted = run_key(log, level, index)
        pair = self.rocks.at_or_before(wanted)
        return None if pair is None else node_in_run(pair, wanted)


def read_cursor(rocks: Rocks, environment: str) -> Cursor:
    """Read the cursor of this environment's store; begin one, durably, in an empty database.

    Raises `StartRefused` and `StoreCorrupt`.
    """
    path = str(rocks.path)
    value = rocks.get(CURSOR)
    if value is None:
        if rocks.at_or_after(b"") is not None:
            raise StoreCorrupt(path, "the cursor is missing")
        cursor = Cursor(environment=environment)
        rocks.write([(CURSOR, encode(cursor))])
        rocks.sync()
        return cursor
    try:
        owner = decode_owner(value)
        if owner.format > FORMAT:
            raise StartRefused(
                f"{path} has format {owner.format}, written by a newer release; this one reads "
                f"format {FORMAT}"
            )
        if owner.environment != environment:
            raise StartRefused(
                f"{path} belongs to environment {owner.environment!r}, not {environment!r}"
            )
        return decode_cursor(value)
    except msgspec.DecodeError as error:
        raise StoreCorrupt(path, f"the cursor does not decode: {error}") from error


def read_seen(reader: StoreReader) -> Seen | None:
    """How far a log had been applied at the last sync. Raises `StoreCorrupt`."""
    value = reader.rocks.get(SEEN)
    return None if value is None else reader.decoded(decode_seen, value, "how far the log was seen")


def load(reader: StoreReader, cursor: Cursor) -> Applied:
    """Take up what the cursor names, checked against nodes and blocks. Raises `StoreCorrupt`.

    Blocks behind the last sync are followed one by one: a power cut can have lost any of them.
    """
    if cursor.height == 0:
        return Applied(ChainState(), None, cursor.wal_id, cursor.wal_offset)
    state = ChainState(
        cursor.height,
        cursor.prev_block_hash,
        _log_state(reader.command_node, cursor.commands),
        _log_state(reader.obligation_node, cursor.obligations),
        _log_state(reader.intent_node, cursor.intents),
        TreeState(cursor.state_root, cursor.state_version),
        TreeState(cursor.risk_root, cursor.risk_version),
    )
    for tree, top in ((STATE_TREE, state.state), (RISK_TREE, state.risk)):
        if top.version is not None:
            found = reader.tree_node(tree, NodeKey(0, 0, top.version)).hash
            _compare(reader, f"the root of tree {tree.decode()!r}", top.root, found)
    latest = _newest_of_chain(reader, state)
    height, header, roots = cursor.height - 1, latest.header, _roots(state)
    if latest.roots != roots:
        raise reader.corrupt(f"block {height}: expected {roots}, found {latest.roots}")
    _compare(reader, f"block {height}: batch_root", batch_root(height, roots), header.batch_root)
    if header.first_seq + header.command_count != state.first_seq:
        raise reader.corrupt(f"block {height} does not end at leaf {state.first_seq}")
    return Applied(state, latest, cursor.wal_id, cursor.wal_offset)


def _newest_of_chain(reader: StoreReader, state: ChainState) -> StoredBlock:
    """Follow the chain back through all blocks behind the last sync; returns the newest block."""
    mark = reader.rocks.get(SYNCED)
    synced = 0 if mark is None else int.from_bytes(mark, "big")
    if synced > state.height:
        raise reader.corrupt(f"{synced} blocks were durable, {state.height} are there")
    newest: StoredBlock | None = None
    expected = state.prev_block_hash
    lowest = max(synced - 1, 0)
    for stop in range(state.height, lowest, -_PAGE):
        for block in reader.blocks(range(stop - 1, max(stop - _PAGE, lowest) - 1, -1)):
            what = f"block {block.header.batch_seq}: block_hash"
            _compare(reader, what, expected, block_hash(block.header))
            _compare(reader, what, expected, block.block_hash)
            expected = block.header.prev_block_hash
            newest = newest or block
    if lowest == 0:
        _compare(reader, "block 0: prev_block_hash", ZERO32, expected)
    if newest is None:
        raise reader.missing(f"block {state.height - 1}")
    return newest


def _compare(reader: StoreReader, what: str, expected: bytes, found: bytes) -> None:
    if expected != found:
        raise reader.corrupt(f"{what}: expected 0x{expected.hex()}, found 0x{found.hex()}")


def _log_state(read: LogReader, size: int) -> LogState:
    """The state of a log of `size` leaves, its peaks read."""
    peaks, start = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            peaks.append(read(level, start >> level))
            start += 1 << level
    return LogState(size, tuple(peaks))


def _roots(state: ChainState) -> Roots:
    return Roots(
        state_root=state.state.root,
        risk_root=state.risk.root,
        command_root=state.commands.root,
        obligation_root=state.obligations.root,
        intent_root=state.intents.root,
    )
