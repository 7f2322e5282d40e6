from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chain.merkle import (
    EMPTY_ROOT,
    LogState,
    append,
    consistency_proof,
    inclusion_proof,
    verify_consistency,
    verify_inclusion,
)
from tests.unit.chain import reference
from tests.unit.chain.logs import StoredLog
from tests.unit.chain.vectors import from_hex, vectors

LEAVES = [reference.keccak(bytes([number])) for number in range(140)]
batches = st.lists(st.lists(st.binary(max_size=40), max_size=20), max_size=8)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit >> 3] ^= 1 << (bit & 7)
    return bytes(changed)


def changed_paths(path: list[bytes]) -> list[list[bytes]]:
    """Every path that differs in one element: a bit, one more, one less, two swapped, a length."""
    changed = [[*path, LEAVES[0]], [LEAVES[0], *path], [*path, b""], [*path, EMPTY_ROOT]]
    for place, sibling in enumerate(path):
        before, after = path[:place], path[place + 1 :]
        changed.append([*before, *after])
        changed.append([*before, sibling, sibling, *after])
        changed.extend(
            [*before, other, *after]
            for other in (
                *(flipped(sibling, bit) for bit in (0, 100, 255)),
                sibling[:-1],
                sibling + b"\x00",
            )
        )
    changed.extend(
        [*path[:place], right, left, *path[place + 2 :]]
        for place, (left, right) in enumerate(pairwise(path))
        if left != right
    )
    return changed


@pytest.mark.parametrize("log", vectors()["logs"], ids=lambda log: f"{len(log['leaves'])}-leaves")
def test_vector_logs_have_their_roots(log: dict[str, list[str]]) -> None:
    leaves = [from_hex(leaf) for leaf in log["leaves"]]
    assert append(LogState(), leaves).state.root.hex() == str(log["root"])[2:]
    assert StoredLog(*([leaf] for leaf in leaves)).state.root.hex() == str(log["root"])[2:]


@given(batches)
def test_any_sequence_of_batches_gives_the_root_over_all_leaves(
    appended: list[list[bytes]],
) -> None:
    log = StoredLog()
    leaves: list[bytes] = []
    for batch in appended:
        log.apply(append(log.state, batch))
        leaves += batch
        assert log.state.size == len(leaves)
        assert log.state.root == reference.log_root(leaves)
    # One append of everything gives the same state as many, and the store has every complete node.
    assert append(LogState(), leaves).state == log.state
    assert log.nodes == {
        (level, index): reference.log_root(leaves[index << level : (index + 1) << level])
        for level in range(len(leaves).bit_length())
        for index in range(len(leaves) >> level)
    }


@given(batches, st.lists(st.binary(max_size=40), max_size=20))
def test_a_prepared_append_that_is_dropped_leaves_no_trace(
    appended: list[list[bytes]], dropped: list[bytes]
) -> None:
    log = StoredLog(*appended)
    state, nodes = log.state, dict(log.nodes)
    append(log.state, dropped)
    assert (log.state, log.nodes) == (state, nodes)
    assert append(log.state, [b"next"]) == append(state, [b"next"])


@given(st.data())
def test_true_proofs_are_those_of_the_rfc_and_are_accepted(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(LEAVES)))
    # The store may be ahead of the size that is asked for.
    log = StoredLog(LEAVES[:size], LEAVES[size:])
    index = data.draw(st.integers(0, size - 1))
    path = inclusion_proof(log.read, index, size)
    assert path == reference.inclusion_path(index, LEAVES[:size])
    root = reference.log_root(LEAVES[:size])
    assert verify_inclusion(LEAVES[index], index, size, path, root)

    first = data.draw(st.integers(1, size))
    path = consistency_proof(log.read, first, size)
    assert path == reference.consistency_path(first, LEAVES[:size])
    assert verify_consistency(first, size, reference.log_root(LEAVES[:first]), root, path)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 13, 64, 100])
def test_an_inclusion_proof_is_refused_after_any_single_change(size: int) -> None:
    log = StoredLog(LEAVES[:size])
    root = log.state.root
    for index in range(size):
        path = inclusion_proof(log.read, index, size)
        leaf = LEAVES[index]
        assert verify_inclusion(leaf, index, size, path, root)
        for changed in changed_paths(path):
            assert not verify_inclusion(leaf, index, size, changed, root)
        for other in range(-1, size + 2):
            assert verify_inclusion(leaf, other, size, path, root) is (other == index)
        for bit in (0, 131, 255):
            assert not verify_inclusion(flipped(leaf, bit), index, size, path, root)
            assert not verify_inclusion(leaf, index, size, path, flipped(root, bit))
        assert not verify_inclusion(leaf, index, 0, path, root)


def turns(index: int, size: int) -> list[bool]:
    """On which side the sibling is, from the leaf upwards."""
    if size == 1:
        return []
    k = reference.largest_power_below(size)
    if index < k:
        return [*turns(index, k), False]
    return [*turns(index - k, size - k), True]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 8, 13])
def test_an_inclusion_proof_is_refused_for_every_place_with_another_way_up(size: int) -> None:
    # Where the way up is the same, RFC 9162 can't tell sizes apart: the size must come signed.
    log = StoredLog(LEAVES[:size])
    for index in range(size):
        path = inclusion_proof(log.read, index, size)
        for other_size in range(1, 2 * size + 3):
            for other in range(other_size):
                same = turns(other, other_size) == turns(index, size)
                held = verify_inclusion(LEAVES[index], other, other_size, path, log.state.root)
                assert held is same


@pytest.mark.parametrize("second", [1, 2, 3, 5, 8, 13, 64, 100])
def test_a_consistency_proof_is_refused_after_any_single_change(second: int) -> None:
    log = StoredLog(LEAVES[:second])
    root = log.state.root
    for first in range(1, second + 1):
        path = consistency_proof(log.read, first, second)
        old = reference.log_root(LEAVES[:first])
        assert verify_consistency(first, second, old, root, path)
        for changed in changed_paths(path):
            assert not verify_consistency(first, second, old, root, changed)
        for bit in (0, 131, 255):
            assert not verify_consistency(first, second, flipped(old, bit), root, path)
            assert not verify_consistency(first, second, old, flipped(root, bit), path)
        for other in (first - 1, first + 1):
            assert not verify_consistency(other, second, old, root, path)
        assert not verify_consistency(first, first - 1, old, root, path)


def test_a_rewritten_log_has_no_consistency_proof() -> None:
    log = StoredLog(LEAVES[:20])
    rewritten = StoredLog([*LEAVES[:7], b"other", *LEAVES[8:40]])
    path = consistency_proof(rewritten.read, 20, 40)
    assert not verify_consistency(20, 40, log.state.root, rewritten.state.root, path)


def test_every_log_extends_the_empty_one() -> None:
    log = StoredLog(LEAVES[:5])
    assert consistency_proof(log.read, 0, 5) == []
    assert verify_consistency(0, 5, EMPTY_ROOT, log.state.root, [])
    assert verify_consistency(0, 0, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not verify_consistency(0, 5, log.state.root, log.state.root, [])
    assert not verify_consistency(0, 0, EMPTY_ROOT, log.state.root, [])
    assert not verify_consistency(0, 5, EMPTY_ROOT, log.state.root, [log.state.root])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5), (6, 5)])
def test_no_inclusion_proof_is_made_for_a_leaf_outside_the_log(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"leaf {index} is not in a log of {size} leaves"):
        inclusion_proof(StoredLog(LEAVES).read, index, size)


@pytest.mark.parametrize(("first", "second"), [(6, 5), (-1, 5), (-2, -1)])
def test_no_consistency_proof_is_made_for_a_shrinking_log(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="does not extend"):
        consistency_proof(StoredLog(LEAVES).read, first, second)


def test_a_proof_reads_a_number_of_nodes_that_grows_with_the_logarithm() -> None:
    log = StoredLog(*(list(batch) for batch in zip(*[iter(LEAVES)] * 7, strict=False)))
    reads: list[tuple[int, int]] = []

    def read(level: int, index: int) -> bytes:
        reads.append((level, index))
        return log.read(level, index)

    for index in range(log.state.size):
        reads.clear()
        inclusion_proof(read, index, log.state.size)
        assert len(reads) <= 2 * log.state.size.bit_length()


def test_peaks_stand_for_the_bits_of_the_size() -> None:
    sizes = list(accumulate([1, 2, 3, 5, 8, 13]))
    for size in sizes:
        assert len(append(LogState(), LEAVES[:size]).state.peaks) == size.bit_count()
