"""Proofs that a service serves, asked for at random and checked against roots derived here."""

import random
from itertools import pairwise
from typing import NamedTuple, Protocol
from uuid import UUID

from msgspec import Struct

from app.chain.header import Bytes32
from app.chain.merkle import verify_consistency, verify_inclusion
from app.chain.verify import Block, Fault, identity_of
from app.model.entry import Count


class Inclusion(Struct, kw_only=True):
    """That a command is in the command log as of block `height`."""

    request_uuid: UUID
    command_identity_hash: Bytes32
    leaf_index: Count
    tree_size: Count
    path: list[Bytes32]
    root: Bytes32
    height: Count


class Consistency(Struct, kw_only=True):
    """That the command log of block `second` begins with the one of block `first`."""

    first: Count
    second: Count
    first_size: Count
    second_size: Count
    first_root: Bytes32
    second_root: Bytes32
    path: list[Bytes32]


class Prover(Protocol):
    """Serves proofs. Raises `Unverifiable` where it does not."""

    async def inclusion(self, request_uuid: UUID, height: int) -> Inclusion:
        """The inclusion proof of a command, as of a block."""

    async def consistency(self, first: int, second: int) -> Consistency:
        """The consistency proof between the command logs of two blocks, given by height."""


class Mark(NamedTuple):
    """The command log as of a verified block, and one of the block's commands."""

    height: int
    size: int
    root: bytes
    request_uuid: UUID
    leaf_index: int
    identity: bytes


class Marks:
    """Up to `count` blocks, drawn from all that were added with the same chance for each."""

    def __init__(self, count: int, draw: random.Random) -> None:
        self.newest: Mark | None = None
        self._count = count
        self._draw = draw
        self._seen = 0
        self._marks: list[Mark] = []

    def add(self, block: Block) -> None:
        """Take a verified block into the draw."""
        header, number = block.header, self._draw.randrange(len(block.commands))
        command = block.commands[number]
        mark = self.newest = Mark(
            header.batch_seq,
            header.first_seq + header.command_count,
            block.roots.command_root,
            UUID(bytes=command.request_uuid),
            header.first_seq + number,
            identity_of(command),
        )
        self._seen += 1
        if len(self._marks) < self._count:
            self._marks.append(mark)
        elif (place := self._draw.randrange(self._seen)) < self._count:
            self._marks[place] = mark

    def drawn(self) -> list[Mark]:
        """The blocks drawn, by height."""
        return sorted(self._marks)


async def check_proofs(prover: Prover, marks: Marks) -> int:
    """Ask for the proofs of the drawn blocks, each also against the newest; return how many.

    Raises `Fault` where one does not show what it should.
    """
    newest, drawn = marks.newest, marks.drawn()
    if newest is None or not drawn:
        return 0
    pairs = {*pairwise([*drawn, newest]), *((mark, newest) for mark in drawn)}
    for first, second in sorted(pairs):
        _check_consistency(await prover.consistency(first.height, second.height), first, second)
    for mark in drawn:
        for at in sorted({mark, newest}):
            _check_inclusion(await prover.inclusion(mark.request_uuid, at.height), mark, at)
    return len(pairs) + sum(len({mark, newest}) for mark in drawn)


def _check_consistency(proof: Consistency, first: Mark, second: Mark) -> None:
    what = f"consistency proof from block {first.height}"
    for field, expected, found in (
        ("from", first.height, proof.first),
        ("to", second.height, proof.second),
        ("first_size", first.size, proof.first_size),
        ("second_size", second.size, proof.second_size),
        ("first_root", first.root, proof.first_root),
        ("second_root", second.root, proof.second_root),
    ):
        if expected != found:
            raise Fault(second.height, f"{what}: {field}", expected, found)
    if not verify_consistency(first.size, second.size, first.root, second.root, proof.path):
        raise Fault(second.height, f"{what}: path", "one between the roots", "another")


def _check_inclusion(proof: Inclusion, mark: Mark, at: Mark) -> None:
    what = f"inclusion proof of {mark.request_uuid}"
    for field, expected, found in (
        ("request_uuid", mark.request_uuid, proof.request_uuid),
        ("height", at.height, proof.height),
        ("tree_size", at.size, proof.tree_size),
        ("root", at.root, proof.root),
    ):
        if expected != found:
            raise Fault(at.height, f"{what}: {field}", expected, found)
    identity = proof.command_identity_hash
    # Behind the duplicate window a request_uuid may come again: its first leaf is what is proven.
    if proof.leaf_index >= mark.leaf_index and identity != mark.identity:
        raise Fault(at.height, f"{what}: command_identity_hash", mark.identity, identity)
    if not verify_inclusion(identity, proof.leaf_index, at.size, proof.path, at.root):
        raise Fault(at.height, f"{what}: path", "one to the root", "another")
