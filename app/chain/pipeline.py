"""From the block commands of a batch to a block: prepared in full, applied only once it is durable.

    prepare_hashed(state, read, hashes, …)  ->  sign  ->  one WAL record, synced  ->  apply

`PreparedBlock` holds all that the writer needs to write and the store to apply. The state it was
prepared from is a value and stays as it is: dropping the prepared block undoes everything.
"""

from collections.abc import Sequence
from typing import NamedTuple

from app.chain import merkle, sparse
from app.chain.hashing import ZERO32
from app.chain.header import (
    GLOBAL_LEAF_KEY,
    NO_SIGNER,
    Header,
    Roots,
    batch_root,
    block_hash,
    command_identities,
    commands_hash,
    event_hashes,
    global_leaf_value,
)
from app.chain.merkle import LogAppend, LogState
from app.chain.sparse import TreeReader, TreeState, TreeUpdate
from app.errors import InvariantError
from app.model.entry import Entry


class ChainState(NamedTuple):
    """Where a chain stands: all the next block is built upon, but the nodes of the state tree."""

    height: int = 0
    prev_block_hash: bytes = ZERO32
    commands: LogState = LogState()
    obligations: LogState = LogState()
    intents: LogState = LogState()
    state: TreeState = TreeState()
    risk: TreeState = TreeState()

    @property
    def first_seq(self) -> int:
        """The number of block commands in all blocks so far."""
        return self.commands.size


class PreparedBlock(NamedTuple):
    """A block that nothing has been changed for yet.

    `header` is unsigned, `digest` its hash, which a signature leaves as it is; `identities` are the
    command log's new leaves. `commands`, `obligations`, `intents`, `state` and `risk` are what a
    store has to add; `after` is the chain's state once it has.
    """

    header: Header
    digest: bytes
    roots: Roots
    identities: list[bytes]
    commands: LogAppend
    obligations: LogAppend
    intents: LogAppend
    state: TreeUpdate
    risk: TreeUpdate
    after: ChainState


class Difference(NamedTuple):
    """The first thing in which a recorded block is not the one that its commands give."""

    height: int
    field: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"block {self.height}: {self.field}: expected {self.expected}, found {self.found}"


def prepare_block(
    before: ChainState,
    read: TreeReader,
    commands: Sequence[Entry],
    timestamp: int,
    signer: bytes = NO_SIGNER,
) -> PreparedBlock:
    """Prepare the next block from a batch's block commands, in batch order.

    `read` reads nodes of the state tree; `timestamp` is `received_ts_ms` of the batch's last entry,
    block command or not; `signer` the address that will sign. Raises `InvariantError` when there is
    no command: such a batch makes no block.
    """
    events = [event for entry in commands for event in entry.events]
    hashed = command_identities(commands), event_hashes(events)
    return prepare_hashed(before, read, *hashed, timestamp, signer)


def prepare_hashed(
    before: ChainState,
    read: TreeReader,
    identities: list[bytes],
    events: list[bytes],
    timestamp: int,
    signer: bytes = NO_SIGNER,
) -> PreparedBlock:
    """Prepare the block of commands that have these identity hashes, and events of these hashes.

    The rest is as for `prepare_block`.
    """
    if not identities:
        raise InvariantError("a block without commands")
    batch_commands_hash = commands_hash(identities)
    log = merkle.append(before.commands, identities)
    obligations = merkle.append(before.obligations, events)
    # As long as both logs get the same leaves, they are the same log.
    same = before.intents == before.commands
    intents = log if same else merkle.append(before.intents, identities)
    leaf = global_leaf_value(batch_commands_hash, log.state.size)
    state = sparse.prepare(before.state, read, {GLOBAL_LEAF_KEY: leaf}, before.height)
    risk = TreeUpdate(before.risk, {}, [])
    roots = Roots(
        state_root=state.state.root,
        risk_root=risk.state.root,
        command_root=log.state.root,
        obligation_root=obligations.state.root,
        intent_root=log.state.root if same else intents.state.root,
    )
    header = Header(
        batch_seq=before.height,
        prev_block_hash=before.prev_block_hash,
        commands_hash=batch_commands_hash,
        batch_root=batch_root(before.height, roots),
        command_count=len(identities),
        first_seq=before.first_seq,
        timestamp=timestamp,
        signer=signer,
    )
    digest = block_hash(header)
    after = ChainState(
        before.height + 1,
        digest,
        log.state,
        obligations.state,
        intents.state,
        state.state,
        risk.state,
    )
    return PreparedBlock(
        header, digest, roots, identities, log, obligations, intents, state, risk, after
    )


def first_difference(prepared: PreparedBlock, header: Header, roots: Roots) -> Difference | None:
    """Compare a recorded block with the one prepared from its commands, except for the signature.

    The signer is part of what is hashed: prepare with the recorded one.
    """
    for ours, theirs in ((prepared.header, header), (prepared.roots, roots)):
        for field in ours.__struct_fields__:
            expected, found = getattr(ours, field), getattr(theirs, field)
            if expected != found and field != "signature":
                return Difference(prepared.header.batch_seq, field, _text(expected), _text(found))
    return None


def _text(value: int | bytes) -> str:
    return f"0x{value.hex()}" if isinstance(value, bytes) else str(value)
