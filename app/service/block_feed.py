"""Blocks for those who read them: the store, the news of a block, and what blocks were made of."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from uuid import UUID

from app.chain.store import CommitmentStore
from app.errors import Unavailable
from app.model.entry import Entry
from app.replication.reader import Reader
from app.service.blocks import BlockProducer
from app.service.logged_blocks import LoggedBlocks


class BlockFeed:
    """What the API knows of blocks (`app.api.block_source`); everything on the event loop.

    Readers wait here for news and then read the store, each at its own pace: nothing is handed to
    them, so nothing waits for them. `look_up` finds an entry, None for an unknown one.
    """

    def __init__(self, look_up: Callable[[UUID], Awaitable[object | None]]) -> None:
        self.closing = False
        self._look_up = look_up
        self._producer: BlockProducer | None = None
        self._logged: LoggedBlocks | None = None
        self._reader: Reader | None = None
        self._news = asyncio.Event()

    def open(self, producer: BlockProducer, logged: LoggedBlocks, reader: Reader) -> None:
        """Blocks can be read from now on."""
        self._producer, self._logged, self._reader = producer, logged, reader

    def announce(self) -> None:
        """There is a new block: wake whoever waits for it."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """Let every stream end; what is stored can still be read."""
        self.closing = True
        self.announce()

    @property
    def store(self) -> CommitmentStore:
        """The commitment store as it is open now. Raises `Unavailable` before that."""
        if self._producer is None:
            raise Unavailable("starting")
        return self._producer.store

    @property
    def behind(self) -> bool:
        """Whether the store lacks blocks that are durable, since it had no room for them."""
        return self._producer is not None and self._producer.starved

    async def wait_for_block(self, height: int, timeout_s: float) -> bool:
        """Wait until the store holds the block at `height`; whether it does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.store.state.height <= height and not self.closing:
                    await self._news.wait()
        return self.store.state.height > height

    async def content_of(self, height: int) -> Mapping[int, Entry] | None:
        """The block commands of a block as journaled, by `command_id`: from the log, or Postgres.

        None, or some left out, where neither has them; raises `DatabaseUnavailable`.
        """
        store = self.store
        block = store.block(height)
        if block is None or self._logged is None or self._reader is None:
            return None
        found = await self._logged.entries(block, store.wal_offset)
        if found is not None:
            return found
        held = await self._reader.block_commands(height)
        return {each.command_id: each.content for each in held if each.content is not None}

    async def is_journaled(self, request_uuid: UUID) -> bool:
        """Whether an entry has this `request_uuid`. Raises `DatabaseUnavailable`."""
        return await self._look_up(request_uuid) is not None
