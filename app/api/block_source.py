"""What the block routes need of the service behind them."""

from collections.abc import Mapping
from typing import Final, Protocol
from uuid import UUID

from fastapi import Request

from app.api.problems import HttpProblem
from app.chain.store import CommitmentStore, StoredBlock
from app.model.entry import Entry

# An answer that something is not there must not outlive the moment at which it comes to be.
NOT_STORED: Final = {"cache-control": "no-store"}


class BlockSource(Protocol):
    """Blocks as they come to be. Everything is called on the event loop."""

    @property
    def store(self) -> CommitmentStore:
        """The commitment store as it is open now. Raises `Unavailable` where there is none."""

    @property
    def behind(self) -> bool:
        """Whether the store lacks blocks that are durable, since it had no room for them."""

    @property
    def closing(self) -> bool:
        """Whether the service shuts down: true from then on."""

    async def wait_for_block(self, height: int, timeout_s: float) -> bool:
        """Wait until the store holds the block at `height`; whether it does.

        Returns false after `timeout_s`, and as soon as the service is `closing`.
        """

    async def content_of(self, height: int) -> Mapping[int, Entry] | None:
        """The block commands of the block at `height` as they were journaled, by `command_id`.

        None, or some left out, where they can't be had any more; raises `DatabaseUnavailable` where
        only Postgres could have them and gives no answer.
        """

    async def is_journaled(self, request_uuid: UUID) -> bool:
        """Whether an entry has this `request_uuid`. Raises `DatabaseUnavailable` as above."""


def blocks_of(request: Request) -> BlockSource:
    """The blocks that the application serves."""
    source: BlockSource = request.app.state.blocks
    return source


def block_at(source: BlockSource, height: int) -> StoredBlock:
    """The block at a height. Raises `HttpProblem` where there is none."""
    block = source.store.block(height)
    if block is None:
        raise no_block(source, height)
    return block


def newest_block(source: BlockSource) -> StoredBlock:
    """The newest block. Raises `HttpProblem` before the first."""
    block = source.store.latest()
    if block is None:
        raise no_block(source, 0)
    return block


def no_block(source: BlockSource, height: int) -> HttpProblem:
    """The problem of a block that is not there: a 404, unless it may be durable all the same."""
    latest = source.store.latest()
    known = "there is none yet" if latest is None else f"the newest is {latest.header.batch_seq}"
    return missing(source, "no_block", f"there is no block at height {height}: {known}")


def missing(source: BlockSource, reason: str, detail: str) -> HttpProblem:
    """A 404, unless the store lacks durable blocks: then it can't say what is not there."""
    if source.behind:
        detail = "the disk is full: the commitment store lacks blocks that are durable"
        return HttpProblem(503, "store_unavailable", detail)
    return HttpProblem(404, reason, detail, NOT_STORED)
