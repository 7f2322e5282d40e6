"""One run over a source: its delegations, its blocks, and what it says about them."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Final

from app.chain.header import Header
from app.chain.verify import Block, ChainCheck, Fault, Unverifiable
from app.errors import CorruptionError
from app.verify.source import Source


async def audit(source: Source, check: ChainCheck, on_block: Callable[[Block], None]) -> None:
    """Check all that `source` holds from where `check` stands.

    `on_block` is called behind each block that is right. Raises `Fault` for the first one that is
    not, `Unverifiable` where it can't be told, also when there is no block at all.
    """
    run = _Run(source, check)
    try:
        await run.blocks(on_block)
    except CorruptionError as error:
        place = f"{error.segment}, offset {error.offset}"
        raise Fault(check.position.height, place, "a record", error.reason) from error


class _Run:
    """What is known about a source while its blocks are checked."""

    def __init__(self, source: Source, check: ChainCheck) -> None:
        self._source = source
        self._check = check
        self._start: Final = check.position.height
        self._confirmed = self._start == 0
        # Delegations that are not right, until a block shows where one would have been needed.
        self._faulty: dict[bytes, Fault] = {}

    async def blocks(self, on_block: Callable[[Block], None]) -> None:
        check, source = self._check, self._source
        await self._learn_delegations()
        newest = await source.newest()
        async with aclosing(source.blocks(self._start)) as blocks:
            async for block in blocks:
                if self._is_trusted(block.header):
                    check.confirm(block)
                    self._confirmed = True
                else:
                    self._need_confirmed()
                    await self._know_signer(block)
                    check.add(block)
                    on_block(block)
                height = check.position.height - 1
                if newest is not None and newest.height == height == block.header.batch_seq:
                    stated, found = newest.block_hash, check.position.block_hash
                    if stated != found:
                        raise Fault(height, "block_hash of the newest block", found, stated)
        if self._faulty:
            raise next(iter(self._faulty.values()))
        if check.position.height == self._start:
            self._found_none()
        if newest is not None and newest.height >= check.position.height:
            raise Fault(check.position.height, "block", f"one, up to {newest.height}", "none")

    def _is_trusted(self, header: Header) -> bool:
        """Whether this is the block before the start."""
        height = self._check.position.height
        return not self._confirmed and height == self._start and header.batch_seq == height - 1

    def _need_confirmed(self) -> None:
        """Refuse to go on from a block that a source does not have, though it should."""
        if not self._confirmed and self._source.whole:
            raise Fault(self._start - 1, "block", self._check.position.block_hash, "none")

    async def _know_signer(self, block: Block) -> None:
        """Ask for delegations again where a key is new; it may be newer than the first answer."""
        header, check = block.header, self._check
        if check.may_sign(header.signer) or block.authority is not None:
            return
        await self._learn_delegations()
        if self._faulty and not check.may_sign(header.signer):
            fault = self._faulty.get(header.signer) or next(iter(self._faulty.values()))
            raise Fault(check.position.height, fault.field, fault.expected, fault.found)
        at_start = check.position.height == self._start
        if (
            at_start
            and self._start
            and not self._source.whole
            and not check.may_sign(header.signer)
        ):
            raise Unverifiable(
                f"block {header.batch_seq} is signed by 0x{header.signer.hex()}, whose delegation "
                "was journaled before what the log still holds: give the delegations"
            )

    async def _learn_delegations(self) -> None:
        for delegation in await self._source.authorities():
            try:
                self._check.add_delegation(delegation)
            except Fault as fault:
                self._faulty.setdefault(delegation.delegate, fault)

    def _found_none(self) -> None:
        if self._start == 0:
            raise Unverifiable("there are no blocks, so there is nothing that could be checked")
        self._need_confirmed()
        if not self._confirmed:
            raise Unverifiable(f"there is no block {self._start}, nor the one before it")
