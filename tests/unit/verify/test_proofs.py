from collections import Counter
from random import Random
from uuid import UUID

import pytest
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.chain.merkle import consistency_proof, inclusion_proof
from app.chain.verify import Block, Fault
from app.verify.proofs import Consistency, Inclusion, Marks, check_proofs
from tests.unit.chain.audited import BLOCKS, chain
from tests.unit.chain.logs import StoredLog
from tests.unit.chain.reference import identity


class Prover:
    """Proves from the whole log; `shift` makes it take the leaf so far behind for the one asked."""

    def __init__(self, blocks: tuple[Block, ...], shift: int = 0) -> None:
        self._blocks = blocks
        self._shift = shift
        commands = [command for block in blocks for command in block.commands]
        self._uuids = [UUID(bytes=command.request_uuid) for command in commands]
        self._identities = [
            command.sent_identity
            if any(command.sent_identity or b"")
            else identity(command.request_uuid, command.command_data)
            for command in commands
        ]
        self._log = StoredLog([bytes(each or b"") for each in self._identities])

    async def inclusion(self, request_uuid: UUID, height: int) -> Inclusion:
        size = self._size(height)
        index = self._uuids.index(request_uuid) + self._shift
        index = min(max(index, 0), size - 1)
        return Inclusion(
            request_uuid=request_uuid,
            command_identity_hash=self._identities[index] or b"",
            leaf_index=index,
            tree_size=size,
            path=inclusion_proof(self._log.read, index, size),
            root=self._blocks[height].roots.command_root,
            height=height,
        )

    async def consistency(self, first: int, second: int) -> Consistency:
        sizes = self._size(first), self._size(second)
        return Consistency(
            first=first,
            second=second,
            first_size=sizes[0],
            second_size=sizes[1],
            first_root=self._blocks[first].roots.command_root,
            second_root=self._blocks[second].roots.command_root,
            path=consistency_proof(self._log.read, *sizes),
        )

    def _size(self, height: int) -> int:
        header = self._blocks[height].header
        return header.first_seq + header.command_count


def marks_of(count: int, seed: int = 1) -> Marks:
    marks = Marks(count, Random(seed))
    for block in chain():
        marks.add(block)
    return marks


@pytest.mark.parametrize("count", [0, 1, 3, BLOCKS, BLOCKS + 1])
async def test_true_proofs_are_right_whichever_blocks_are_drawn(count: int) -> None:
    for seed in range(20):
        marks = marks_of(count, seed)
        assert len(marks.drawn()) == min(count, BLOCKS)
        checked = await check_proofs(Prover(chain()), marks)
        assert (checked > 0) == (count > 0)


def test_every_block_has_the_same_chance_to_be_drawn() -> None:
    drawn = Counter(mark.height for seed in range(2000) for mark in marks_of(2, seed).drawn())
    assert set(drawn) == set(range(BLOCKS))
    assert all(400 < times < 600 for times in drawn.values())


async def test_the_true_proof_of_a_later_command_is_not_one_of_this() -> None:
    with pytest.raises(Fault, match="command_identity_hash"):
        await check_proofs(Prover(chain(), shift=1), marks_of(BLOCKS))


async def test_the_proof_of_an_earlier_leaf_may_be_of_the_same_request_uuid() -> None:
    """Behind the duplicate window a request_uuid may come again, with other content even."""
    assert await check_proofs(Prover(chain(), shift=-1), marks_of(BLOCKS))


async def test_no_proofs_are_asked_for_without_blocks() -> None:
    assert await check_proofs(Prover(chain()), Marks(3, Random(1))) == 0


async def test_a_proof_to_another_root_than_the_derived_one_is_found() -> None:
    blocks = list(chain())
    roots = replace(blocks[-1].roots, command_root=b"\x01" * 32)
    blocks[-1] = replace(blocks[-1], roots=roots)
    with pytest.raises(Fault, match=f"block {BLOCKS - 1}: .*root"):
        await check_proofs(Prover(tuple(blocks)), marks_of(BLOCKS))
