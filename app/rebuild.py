"""Rebuilding the commitment store from Postgres: `journal commitments rebuild`, `journal adopt`.

Every block is derived again from its commands and compared with the header that was signed, so the
rebuilt store is proven equal to the chain, or refused. It takes the old one's place when it is
whole; the old one is kept beside it.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from app.chain.pipeline import first_difference, prepare_block
from app.chain.store import BlockCommand, CommitmentStore, Seen
from app.errors import CorruptionError, StartRefused
from app.replication.block_reader import BlockReader, HeldBlock
from app.replication.reader import Reader
from app.service.opening import claim_data_dir
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.genesis import read_owner
from app.wal.segments import list_segments

_NEW_SUFFIX = ".new"
_OLD_SUFFIX = ".old"
# The log that a block is said to come from while the store is not at its final place yet.
_ON_THE_WAY = "postgres"


def run(settings: Settings, database_url: str, on_block: Callable[[int], None]) -> str:
    """Rebuild the store of a log that is there; returns a line that says what was done.

    The blocks that Postgres does not have yet are derived from the log at the next start. Raises
    `CorruptionError` where Postgres does not hold what the headers commit to.
    """
    files = FileSystem()
    lock = claim_data_dir(files, settings)
    try:
        if not list_segments(files, settings.wal_dir):
            raise StartRefused(f"{settings.wal_dir} holds no log; `journal adopt` begins one")
        owner = read_owner(files, settings.wal_dir)
        return asyncio.run(_rebuild(files, settings, database_url, owner.wal_id, on_block))
    finally:
        files.close(lock)


async def _rebuild(
    files: FileSystem,
    settings: Settings,
    database_url: str,
    wal_id: str,
    on_block: Callable[[int], None],
) -> str:
    async with Reader(database_url, settings.environment) as reader:
        progress = await reader.progress()
    if progress is None or progress.wal_id != wal_id:
        raise StartRefused(
            f"Postgres holds nothing of the log {wal_id}: what the log holds itself is derived "
            f"from it at the next start, once {settings.commitments_dir} is moved away"
        )
    height = await fill_store(files, settings, database_url, wal_id, progress.wal_offset, on_block)
    return f"rebuilt the commitment store from Postgres: {height} blocks, each equal to its header"


async def fill_store(
    files: FileSystem,
    settings: Settings,
    database_url: str,
    wal_id: str,
    wal_offset: int,
    on_block: Callable[[int], None],
) -> int:
    """Build the store from Postgres' blocks, as of `wal_offset` of a log; returns how many."""
    target = settings.commitments_dir
    draft = target.with_name(target.name + _NEW_SUFFIX)
    await asyncio.to_thread(_remove_tree, draft)
    store = CommitmentStore.open(
        draft,
        settings.environment,
        prune_window=settings.rsm_prune_window,
        pruning_enabled=settings.rsm_pruning_enabled,
    )
    try:
        async with await BlockReader.connect(database_url, settings.environment) as reader:
            newest = await reader.newest_block()
            if newest is not None:
                async for held in reader.blocks(content=True):
                    last = held.header.batch_seq == newest.height
                    place = (wal_id, wal_offset) if last else (_ON_THE_WAY, store.state.height + 1)
                    apply_held(store, held, *place)
                    on_block(held.header.batch_seq)
        store.sync(Seen(wal_id, wal_offset))
        height = store.state.height
    finally:
        store.close()
    await asyncio.to_thread(_swap, files, draft, target)
    return height


def apply_held(store: CommitmentStore, held: HeldBlock, wal_id: str, wal_offset: int) -> None:
    """Derive a block from its commands, compare it with its header, and apply it."""
    header, roots = held.header, held.roots
    entries = [command.content for command in held.commands if command.content is not None]
    if roots is None or len(entries) != header.command_count:
        raise CorruptionError(
            "Postgres",
            wal_offset,
            f"block {header.batch_seq}: expected {header.command_count} commands with content, "
            f"found {len(entries)}",
        )
    prepared = prepare_block(store.state, store.read_node, entries, header.timestamp, header.signer)
    difference = first_difference(prepared, header, roots)
    if difference is not None:
        raise CorruptionError("Postgres", wal_offset, str(difference))
    commands = [
        BlockCommand(
            command_id=command.command_id,
            request_uuid=command.request_uuid.bytes,
            command_type=command.command_type,
            identity=identity,
            leaf_index=header.first_seq + position,
        )
        for position, (command, identity) in enumerate(
            zip(held.commands, prepared.identities, strict=True)
        )
    ]
    store.apply(prepared, header, held.authority, commands, wal_id, wal_offset)


def _swap(files: FileSystem, draft: Path, target: Path) -> None:
    """Let the new store take the old one's place, which is kept beside it."""
    if files.exists(target):
        old = target.with_name(target.name + _OLD_SUFFIX)
        _remove_tree(old)
        files.rename(target, old)
    files.rename(draft, target)
    files.sync_directory(target.parent)


def _remove_tree(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
