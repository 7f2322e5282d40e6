"""What a source of blocks is."""

from collections.abc import AsyncGenerator
from typing import NamedTuple, Protocol

from app.chain.header import Delegation
from app.chain.verify import Block
from app.model.entry import Event
from app.verify.proofs import Prover


class Newest(NamedTuple):
    """The block that a source calls its newest."""

    height: int
    block_hash: bytes


class Extent(NamedTuple):
    """How far reading has come, in whatever unit the source counts; `total` is None if unknown."""

    done: int
    total: int | None


class LooseEvent(Event, kw_only=True, forbid_unknown_fields=False):
    """An event with fields beside those that are hashed."""


class Source(Protocol):
    """Holds blocks. Everything raises `Unverifiable` where the source can't be read.

    What can be read and is not what a journal holds is a `Fault` or a `CorruptionError`.
    """

    @property
    def whole(self) -> bool:
        """Whether every block of the journal is here, so that one that is missing is a fault."""

    @property
    def extent(self) -> Extent:
        """How far reading has come."""

    @property
    def prover(self) -> Prover | None:
        """Who serves proofs; None where nobody does."""

    async def newest(self) -> Newest | None:
        """The newest block by the source's own account; None where it gives none."""

    async def authorities(self) -> list[Delegation]:
        """The delegations that the source keeps apart from its blocks, as of now."""

    def blocks(self, start: int) -> AsyncGenerator[Block, None]:
        """The blocks from height `start` on, behind the one before them, if it is there.

        They come as they are: nothing is checked but their shape.
        """
