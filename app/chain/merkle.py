"""Append-only logs: RFC 9162, section 2.1, with Keccak-256 (chain page, "Three append-only logs").

A log is kept as a Merkle mountain range. A *complete node* `(level, index)` covers the `2**level`
leaves from `index << level` on, and never changes once it exists; level 0 holds the leaf hashes.
The committed state of a log is its size and its *peaks*, one complete node for each bit of the
size. Proofs are made from complete nodes, which a store keeps and a `LogReader` reads.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from app.chain.bulk import lanes_for
from app.chain.hashing import HASH_BYTES, keccak

EMPTY_ROOT: Final = keccak(b"")
_LEAF: Final = b"\x00"
_NODE: Final = b"\x01"


LogReader = Callable[[int, int], bytes]
"""Reads the complete node `(level, index)` of one log, 32 bytes; raises when it is not there."""


class LogState(NamedTuple):
    """What a log commits to: the number of leaves, and the peaks, the largest first."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    @property
    def root(self) -> bytes:
        """The tree hash of RFC 9162, section 2.1.1, folded from the peaks."""
        return fold(self.peaks)


class NodeRun(NamedTuple):
    """New complete nodes of one level from index `start` on, their hashes side by side."""

    level: int
    start: int
    hashes: bytes


class LogAppend(NamedTuple):
    """A prepared append: the state after it, and the nodes a store has to add to get there."""

    state: LogState
    runs: list[NodeRun]


def leaf_hash(data: bytes) -> bytes:
    """Hash one leaf: `keccak(0x00 ‖ data)`."""
    return keccak(_LEAF + data)


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash an inner node: `keccak(0x01 ‖ left ‖ right)`."""
    return keccak(_NODE + left + right)


def fold(hashes: Sequence[bytes]) -> bytes:
    """Fold complete nodes that stand side by side, largest first, into the root over them all."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in hashes[-2::-1]:
        root = node_hash(left, root)
    return root


def append(state: LogState, leaves: Sequence[bytes]) -> LogAppend:
    """Prepare an append of `leaves`: their data, not their hashes. `state` is left as it is."""
    lanes = lanes_for(len(leaves))
    if lanes is not None and set(map(len, leaves)) == {HASH_BYTES}:
        return _append_in_lanes(lanes, state, leaves)
    run = [keccak(_LEAF + data) for data in leaves]
    size = state.size + len(run)
    old_peaks = list(state.peaks)
    peaks: list[bytes] = []
    runs: list[NodeRun] = []
    level = 0
    while size >> level:
        start = state.size >> level
        if run:
            runs.append(NodeRun(level, start, b"".join(run)))
        # An odd start means that the last old node of this level has had no sibling: it is a peak.
        unpaired = [old_peaks.pop(), *run] if start & 1 else run
        if (size >> level) & 1:
            peaks.append(unpaired[-1])
        run = [
            keccak(_NODE + left + right)
            for left, right in zip(unpaired[::2], unpaired[1::2], strict=False)
        ]
        level += 1
    return LogAppend(LogState(size, tuple(reversed(peaks))), runs)


def _append_in_lanes(lanes: Any, state: LogState, leaves: Sequence[bytes]) -> LogAppend:
    size = state.size + len(leaves)
    nodes = lanes.append_leaves(leaves, state.size, state.peaks)
    peaks: list[bytes] = []
    runs: list[NodeRun] = []
    level = at = 0
    while size >> level:
        start = state.size >> level
        at += HASH_BYTES  # the place of an old peak
        end = at + HASH_BYTES * ((size >> level) - start)
        if end > at:
            runs.append(NodeRun(level, start, nodes[at:end]))
        if (size >> level) & 1:
            peaks.append(nodes[end - HASH_BYTES : end])
        at = end
        level += 1
    return LogAppend(LogState(size, tuple(reversed(peaks))), runs)


def inclusion_proof(read: LogReader, index: int, size: int) -> list[bytes]:
    """Return `PATH(index, D[size])` of RFC 9162, section 2.1.3.1, from the leaf upwards.

    `size` may be any earlier size of the log. Raises `ValueError` unless `0 <= index < size`.
    """
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a log of {size} leaves")
    path = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_range_root(read, middle, stop))
            stop = middle
        else:
            path.append(_range_root(read, start, middle))
            start = middle
    path.reverse()
    return path


def consistency_proof(read: LogReader, first: int, second: int) -> list[bytes]:
    """Return `PROOF(first, D[second])` of RFC 9162, section 2.1.4.1.

    It is empty when the sizes are equal or `first` is 0. Raises `ValueError` unless
    `0 <= first <= second`.
    """
    if not 0 <= first <= second:
        raise ValueError(f"a log of {second} leaves does not extend one of {first}")
    path: list[bytes] = []
    if first == 0:
        return path
    start, stop = 0, second
    while first != stop:
        middle = start + _split(stop - start)
        if first <= middle:
            path.append(_range_root(read, middle, stop))
            stop = middle
        else:
            path.append(_range_root(read, start, middle))
            start = middle
    if start:
        path.append(_range_root(read, start, stop))
    path.reverse()
    return path


def verify_inclusion(
    data: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """Whether `path` proves leaf `data` to be at `index` of the log of `size` leaves with `root`.

    RFC 9162, section 2.1.3.2. A root does not say how many leaves it is over, and some sizes give a
    leaf the same way up: take `size` from a signed header, as `first_seq + command_count`.
    """
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    computed = leaf_hash(data)
    for sibling in path:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            node, last = _skip_right_edge(node, last)
        else:
            computed = node_hash(computed, sibling)
        node >>= 1
        last >>= 1
    return last == 0 and computed == root


def verify_consistency(
    first: int, second: int, first_root: bytes, second_root: bytes, path: Sequence[bytes]
) -> bool:
    """Whether `path` proves that the log of `second` leaves begins with the log of `first` leaves.

    RFC 9162, section 2.1.4.2; an empty log is a prefix of every log, and equal sizes ask for equal
    roots. Take the sizes from signed headers, as for inclusion.
    """
    if not 0 <= first <= second:
        return False
    if first == 0:
        return not path and first_root == EMPTY_ROOT and (second > 0 or second_root == EMPTY_ROOT)
    if first == second:
        return not path and first_root == second_root
    proof = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not path:
        return False
    return _consistency_roots(first - 1, second - 1, proof) == (first_root, second_root)


def _consistency_roots(node: int, last: int, proof: list[bytes]) -> tuple[bytes, bytes] | None:
    """Compute both roots from a consistency proof (steps 4 to 7); None when its length is wrong."""
    while node & 1:
        node >>= 1
        last >>= 1
    first_root = second_root = proof[0]
    for sibling in proof[1:]:
        if last == 0:
            return None
        if node & 1 or node == last:
            first_root = node_hash(sibling, first_root)
            second_root = node_hash(sibling, second_root)
            node, last = _skip_right_edge(node, last)
        else:
            second_root = node_hash(second_root, sibling)
        node >>= 1
        last >>= 1
    return (first_root, second_root) if last == 0 else None


def _skip_right_edge(node: int, last: int) -> tuple[int, int]:
    """Climb the levels where a node on the right edge has no sibling and so is its own parent."""
    while node and not node & 1:
        node >>= 1
        last >>= 1
    return node, last


def _split(count: int) -> int:
    """Return the largest power of two below `count`, for two or more leaves."""
    return 1 << (count - 1).bit_length() - 1


def _range_root(read: LogReader, start: int, stop: int) -> bytes:
    """Return the tree hash of the leaves from `start` up to `stop`; `start` begins a subtree."""
    hashes = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        hashes.append(read(level, start >> level))
        start += 1 << level
    return fold(hashes)
