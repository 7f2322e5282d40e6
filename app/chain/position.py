"""How far a check of a chain has come: enough to go on from, in a few hundred bytes."""

from msgspec import Struct

from app.chain.hashing import ZERO32
from app.chain.header import Bytes32, Delegation
from app.chain.merkle import EMPTY_ROOT, leaf_hash, node_hash
from app.model.entry import Count


class Log(Struct, kw_only=True):
    """An append-only log of which only the peaks are kept, the largest first (RFC 9162, 2.1.1)."""

    size: Count = 0
    peaks: list[Bytes32] = []

    def append(self, data: bytes) -> None:
        """Add one leaf."""
        node, size = leaf_hash(data), self.size
        while size & 1:
            node = node_hash(self.peaks.pop(), node)
            size >>= 1
        self.peaks.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        """The tree hash over all leaves."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in self.peaks[-2::-1]:
            root = node_hash(peak, root)
        return root


class Logs(Struct, kw_only=True):
    """The logs up to a block. Commands and intents get the same leaves, so they are one log."""

    commands: Log
    obligations: Log


class Position(Struct, kw_only=True):
    """Where in a chain checking begins, or how far it has come. To go on from it, trust it.

    `height` is the next block's, the others tell of all blocks before. `commands` is None where
    only the hash of the block before is known; without `logs` the roots of the logs can't be
    derived.
    """

    height: Count = 0
    block_hash: Bytes32 = ZERO32
    commands: Count | None = None
    last_command_id: Count = 0
    logs: Logs | None = None
    delegations: list[Delegation] = []


def beginning() -> Position:
    """The position before the first block of a chain."""
    return Position(commands=0, logs=Logs(commands=Log(), obligations=Log()))
