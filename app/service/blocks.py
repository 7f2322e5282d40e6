"""Blocks in the writer: prepared before the record, applied to the commitment store after its sync.

Everything here but `sync` and the reads of the store runs on the writer's thread. A block that was
prepared and not applied leaves no trace: store and next block are built on what was applied.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from app.chain.content import Content, content_of
from app.chain.header import NO_SIGNER, Delegation, Header, Roots
from app.chain.pipeline import PreparedBlock, prepare_hashed
from app.chain.store import BlockCommand, CommitmentStore, Seen
from app.errors import DiskFull, OutsideWindow, StoreFailed, StoreFull
from app.model.codec import PreparedRequest

_log = logging.getLogger(__name__)


class HotKey(Protocol):
    """A key that may sign now, and the delegation that says so."""

    @property
    def address(self) -> bytes:
        """Its 20-byte address."""

    @property
    def delegation(self) -> Delegation:
        """The cold key's word for it."""

    def sign_header(self, header: Header) -> Header:
        """Return the header with its signature."""


class Signer(Protocol):
    """Gives the hot key that is valid by the service's clock; None when there is none."""

    @property
    def fault(self) -> str | None:
        """Why no key could be made, the last time that one was needed."""

    def current(self) -> HotKey | None:
        """The key for the next block."""


@dataclass(frozen=True, slots=True)
class PendingBlock:
    """A signed block on its way into a record."""

    prepared: PreparedBlock
    header: Header
    content: Content
    authority: Delegation | None

    @property
    def indices(self) -> list[int]:
        """Which of the record's commands it covers."""
        return self.content.indices

    @property
    def roots(self) -> Roots:
        """The roots after the block."""
        return self.prepared.roots


class BlockProducer:
    """Makes a block of every batch that holds a block command.

    `reopen` opens the store anew and catches it up from the log; it is called before the next batch
    when the store has refused a write for want of room.
    """

    def __init__(
        self,
        store: CommitmentStore,
        block_commands: frozenset[str],
        signer: Signer | None,
        wal_id: str,
        end: int,
        reopen: Callable[[], CommitmentStore],
    ) -> None:
        self.store = store
        self.unsigned = 0
        self._block_commands = block_commands
        self._signer = signer
        self._wal_id = wal_id
        self._reopen = reopen
        self._applied_end = end
        self._journaled: bytes | None = None
        newest = store.latest()
        self._was_signed = newest is not None and newest.header.signer != NO_SIGNER
        if signer is None and self._was_signed:
            _log.warning(
                "blocks were signed so far, and are not from now on: COLD_KEY_FILE is missing"
            )
        self._starved = False

    @property
    def starved(self) -> bool:
        """Whether the store refuses writes because the disk is full."""
        return self._starved

    @property
    def signing(self) -> str:
        """`off` without a cold key, `ok`, or `degraded`: blocks of a signed chain are not now."""
        if self._signer is None:
            return "degraded" if self._was_signed else "off"
        return "ok" if self._signer.fault is None else "degraded"

    def prepare(self, requests: Sequence[PreparedRequest]) -> PendingBlock | None:
        """Prepare and sign the block of a batch; None when the batch holds no block command.

        Raises `DiskFull` while the store can't be written.
        """
        if self._starved:
            self._recover_store()
        content = content_of(requests, self._block_commands)
        if content is None:
            return None
        hot = None if self._signer is None else self._signer.current()
        prepared = self._prepare(content, hot)
        header = prepared.header
        if hot is not None:
            try:
                header = hot.sign_header(header)
            except OutsideWindow as error:  # the clock has jumped since the key was asked for
                _log.warning("block %d stays unsigned: %s", header.batch_seq, error)
                hot = None
                prepared = self._prepare(content, hot)
                header = prepared.header
        new = hot is not None and hot.address != self._journaled
        authority = hot.delegation if hot is not None and new else None
        return PendingBlock(prepared, header, content, authority)

    def _prepare(self, content: Content, hot: HotKey | None) -> PreparedBlock:
        return prepare_hashed(
            self.store.state,
            self.store.read_node,
            content.identities,
            content.events,
            content.timestamp,
            NO_SIGNER if hot is None else hot.address,
        )

    def applied(self, pending: PendingBlock | None, first_command_id: int, end: int) -> None:
        """The record is durable: apply its block, if it has one."""
        if pending is not None:
            if pending.authority is not None:
                self._journaled = pending.authority.delegate
            self.unsigned += pending.header.signer == NO_SIGNER
            try:
                self.store.apply(
                    pending.prepared,
                    pending.header,
                    pending.authority,
                    block_commands(pending.prepared, pending.content, first_command_id),
                    self._wal_id,
                    end,
                )
            except DiskFull as error:
                _log.error(
                    "block %d is durable but not applied: %s", pending.header.batch_seq, error
                )
                self._starved = True
                return
        self._applied_end = end

    def height_of(self, request_uuid: bytes) -> int | None:
        """The block that covers a command; None when none does, or the store can't tell now."""
        if self._starved:
            return None
        leaf = self.store.leaf_of(request_uuid)
        return None if leaf is None else self.store.height_of_leaf(leaf[0])

    def sync(self) -> int:
        """Make the store durable; returns up to where it then needs no log. Any thread.

        Raises `DiskFull` when it can't be written now: the next batch opens it anew.
        """
        end, store = self._applied_end, self.store
        try:
            store.sync(Seen(self._wal_id, end))
        except StoreFull:
            self._starved = True
            raise
        except StoreFailed as error:
            if self._starved or store is not self.store:
                raise DiskFull("the commitment store waits for room") from error
            raise
        return end

    def close(self) -> None:
        """Make the store durable and close it. What has no room is derived again from the log."""
        with suppress(DiskFull):
            self.sync()
        self.store.close()

    def _recover_store(self) -> None:
        self.store.close()
        self.store = self._reopen()
        self._starved = False
        _log.info("the commitment store is written again, at block %d", self.store.state.height - 1)


def block_commands(
    prepared: PreparedBlock, content: Content, first_command_id: int
) -> list[BlockCommand]:
    """What the store keeps of a block's commands."""
    columns = content.indices, content.request_uuids, content.types, content.identities
    return [
        BlockCommand(first_command_id + index, request_uuid, command_type, identity, leaf)
        for leaf, (index, request_uuid, command_type, identity) in enumerate(
            zip(*columns, strict=True), prepared.header.first_seq
        )
    ]
