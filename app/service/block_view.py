"""The blocks of a running journal, as the API sees them. Everything here runs on the event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from app.chain.store import CommitmentStore
from app.errors import Unavailable
from app.model.entry import Entry
from app.replication.block_reader import HeldCommand
from app.service.blocks import BlockProducer
from app.service.logged_blocks import LoggedBlocks

_MAX_CONNECTIONS: Final = 2


@dataclass(frozen=True, slots=True)
class BlockParts:
    """What an open journal gives the view."""

    producer: BlockProducer
    logged: LoggedBlocks
    replicated: Callable[[int], Awaitable[list[HeldCommand]]]
    """The commands of a block by its height, with content, out of Postgres."""
    look_up: Callable[[UUID], Awaitable[Any]]


class BlockView:
    """Reads the commitment store; journaled content comes from the log, or else from Postgres."""

    def __init__(self) -> None:
        self.closing = False
        self._parts: BlockParts | None = None
        self._changed = asyncio.Event()
        # However many clients ask: others look entries up over the same few connections.
        self._reading = asyncio.Semaphore(_MAX_CONNECTIONS)

    def opened(self, parts: BlockParts) -> None:
        """The journal is open."""
        self._parts = parts

    def produced(self) -> None:
        """The store holds a further block: wake whoever waits for one."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        """The service shuts down: end all waits."""
        self.closing = True
        self._changed.set()

    @property
    def store(self) -> CommitmentStore:
        """The commitment store as it is open now. Raises `Unavailable` before the journal is."""
        return self._open().producer.store

    @property
    def behind(self) -> bool:
        """Whether the store lacks durable blocks, since it had no room for them."""
        return self._parts is not None and self._parts.producer.starved

    async def wait_for_block(self, height: int, timeout_s: float) -> bool:
        """Wait until the store holds the block; False after the limit or at shutdown."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.store.state.height <= height and not self.closing:
                    await self._changed.wait()
        return self.store.state.height > height

    async def content_of(self, height: int) -> Mapping[int, Entry] | None:
        """The block's commands as they were journaled, by command_id; None where they are gone.

        Raises `DatabaseUnavailable` where only Postgres could have them.
        """
        parts, store = self._open(), self.store
        block = store.block(height)
        if block is None:
            return None
        found = await parts.logged.entries(block, store.wal_offset)
        if found is not None:
            return found
        async with self._reading:
            held = await parts.replicated(height)
        return {each.command_id: each.content for each in held if each.content is not None} or None

    async def is_journaled(self, request_uuid: UUID) -> bool:
        """Whether an entry has this request_uuid. Raises `DatabaseUnavailable`."""
        return await self._open().look_up(request_uuid) is not None

    def _open(self) -> BlockParts:
        if self._parts is None:
            raise Unavailable("starting")
        return self._parts
