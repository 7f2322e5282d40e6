"""Bringing the commitment store up to the end of the log (protocol, section 5).

Blocks are derived again and compared. What differs refuses the start and names block, expected and
found.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from app.chain.content import chosen_content
from app.chain.header import Header, block_hash
from app.chain.pipeline import first_difference, prepare_hashed
from app.chain.store import CommitmentStore
from app.chain.store_format import StoredBlock
from app.errors import CorruptionError, DatabaseUnavailable, StartRefused
from app.replication.block_reader import BlockReader
from app.service.blocks import block_commands
from app.wal.decoding import decode_raw, decode_record
from app.wal.files import FileSystem
from app.wal.reader import Frame, decoded, read_frames
from app.wal.record import Genesis
from app.wal.segments import Segment

_log = logging.getLogger(__name__)


class LogExtent(NamedTuple):
    """A log between the offset where reading begins and its end, or that of its last block."""

    segments: Sequence[Segment]
    wal_id: str
    start: int
    end: int


def catch_up(files: FileSystem, log: LogExtent, store: CommitmentStore) -> int:
    """Apply the blocks of a log that the store has not; returns how many.

    Raises `CorruptionError`, and `StartRefused` for a store that belongs to another log.
    """
    if store.wal_id not in (None, log.wal_id):
        raise StartRefused(
            f"the commitment store belongs to the log {store.wal_id}, this is the log {log.wal_id}"
        )
    start = max(log.start, store.reached(log.wal_id) or 0)
    applied = 0
    if start >= log.end:
        return applied
    for segment, frame in read_frames(files, log.segments, start, log.end):
        applied += _apply(log.wal_id, segment, frame, store)
    if applied:
        _log.info("derived %d blocks again, up to block %d", applied, store.state.height - 1)
    return applied


async def check_newest_block(dsn: str, environment: str, store: CommitmentStore) -> bool:
    """Postgres' newest block must be one that the store has; False when Postgres is down.

    Raises `StartRefused` where it is another, or beyond the store.
    """
    try:
        async with await BlockReader.connect(dsn, environment) as reader:
            newest = await reader.newest_block()
    except DatabaseUnavailable:
        return False
    if newest is None:
        return True
    known = store.block(newest.height)
    held = (
        f"block {newest.height}: Postgres holds 0x{newest.block_hash.hex()}, the commitment store"
    )
    if known is None:
        raise StartRefused(f"{held} none; `journal commitments rebuild` can rebuild it")
    if known.block_hash != newest.block_hash:
        raise StartRefused(f"{held} 0x{known.block_hash.hex()}")
    return True


def check_reaches(store: CommitmentStore, wal_id: str, kept_from: int) -> None:
    """Where Postgres can't tell: no block may be missing that the log held and has given back.

    `kept_from` is the offset before which the log is gone. Raises `StartRefused`.
    """
    reached = store.reached(wal_id)
    if reached is None or reached < kept_from:
        raise StartRefused(
            f"{store.path} may lack blocks: it knows the log {wal_id} up to offset {reached or 0}, "
            f"and the log is kept from {kept_from} on; start with Postgres up, or let "
            "`journal commitments rebuild` rebuild it from there"
        )


def _apply(wal_id: str, segment: Segment, frame: Frame, store: CommitmentStore) -> int:
    # Commands are decoded in blocks alone: those of other records were, where it was needed.
    raw = decoded(segment, frame, decode_raw)
    if isinstance(raw, Genesis) or raw.header is None:
        return 0
    record = decoded(segment, frame, decode_record)
    if isinstance(record, Genesis) or record.header is None:
        return 0
    header, roots, indices = record.header, record.roots, record.block_indices
    height = header.batch_seq

    def refuse(reason: str) -> CorruptionError:
        return CorruptionError(segment.path.name, frame.offset, f"block {height}: {reason}")

    if roots is None or indices is None:
        raise refuse("a header without roots or indices")
    if height < store.state.height:
        known = store.block(height)
        if known is None or known.header != header:
            raise refuse(f"a second block at this height: {_contrast(known, header)}")
        return 0
    if height > store.state.height:
        raise refuse(
            f"a gap: expected block {store.state.height}, where the commitment store is; "
            "`journal commitments rebuild` can rebuild it from Postgres"
        )
    if len(indices) != header.command_count:
        raise refuse(f"expected {header.command_count} block commands, found {len(indices)}")
    misplaced = _misplaced(indices, len(record.commands))
    if misplaced is not None:
        raise refuse(misplaced)
    content = chosen_content(record.commands, indices)
    prepared = prepare_hashed(
        store.state,
        store.read_node,
        content.identities,
        content.events,
        content.timestamp,
        header.signer,
    )
    difference = first_difference(prepared, header, roots)
    if difference is not None:
        raise CorruptionError(segment.path.name, frame.offset, str(difference))
    commands = block_commands(prepared, content, record.first_command_id)
    store.apply(prepared, header, record.authority, commands, wal_id, frame.end)
    return 1


def _misplaced(indices: Sequence[int], count: int) -> str | None:
    """What is wrong with indices that are to name commands of the record, in their order."""
    if not indices:
        return "expected block commands, found none"
    for before, index in pairwise((-1, *indices)):
        if not before < index < count:
            return (
                f"block_indices: expected an index above {before} and below {count}, found {index}"
            )
    return None


def _contrast(known: StoredBlock | None, header: Header) -> str:
    """How a block differs from the one that the store holds at its height."""
    found = block_hash(header)
    if known is None:
        return f"expected none, as the commitment store lacks it, found 0x{found.hex()}"
    if known.block_hash != found:
        return f"expected 0x{known.block_hash.hex()}, found 0x{found.hex()}"
    expected = known.header.signature.hex()
    return f"signature: expected 0x{expected}, found 0x{header.signature.hex()}"
