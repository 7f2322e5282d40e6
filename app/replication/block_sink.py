"""Blocks into Postgres, within the sink's transaction (protocol, section 6).

The tables' own constraints refuse what contradicts the chain that is there. Whatever they refuse,
our log and Postgres tell different histories: that is never a dead letter.
"""

import logging
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from app.errors import ReplicationRefused
from app.replication.block_rows import (
    Block,
    authority_rows,
    block_rows,
    rows_below_blocks,
)
from app.replication.connection import CONTENT_ERRORS, Connection, describe, is_content_error

# A block that is there already, by height and hash, is left alone. Another one at its height
# violates the primary key.
_INSERT_BLOCKS: Final = """
INSERT INTO rsm_blocks (
    environment, batch_seq, block_hash, prev_block_hash, commands_hash, batch_root, command_count,
    first_seq, timestamp, signer, signature, first_command_id, last_command_id)
SELECT * FROM unnest(
    $1::text[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::bytea[], $11::bytea[], $12::bigint[], $13::bigint[])
ON CONFLICT (environment, batch_seq, block_hash) DO NOTHING
RETURNING batch_seq
"""
_MOVE_CURRENT_STATE: Final = """
INSERT INTO rsm_current_state AS held (environment, batch_seq, block_hash, batch_root, state_root)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (environment) DO UPDATE SET
    batch_seq = excluded.batch_seq,
    block_hash = excluded.block_hash,
    batch_root = excluded.batch_root,
    state_root = excluded.state_root,
    updated_at = now()
WHERE held.batch_seq < excluded.batch_seq
"""
_INSERT_AUTHORITY: Final = """
INSERT INTO signing_authorities
    (environment, delegator, delegate, valid_from, valid_until, signature, batch_seq)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT DO NOTHING
"""

_log = logging.getLogger(__name__)


async def insert_blocks(
    connection: Connection, environment: str, blocks: Sequence[Block], left_out: AbstractSet[int]
) -> None:
    """Insert `blocks` and all that goes with them; `left_out` as in `rows_below_blocks`.

    The entries must have been inserted before. Raises `ReplicationRefused` when the blocks can't go
    on behind those in Postgres.
    """
    if not blocks:
        return
    try:
        await _insert(connection, environment, blocks, left_out)
    except CONTENT_ERRORS as error:
        if not is_content_error(error):
            raise
        first, last = blocks[0].header.batch_seq, blocks[-1].header.batch_seq
        raise ReplicationRefused(
            f"blocks {first} to {last} of this WAL contradict those in Postgres: {describe(error)}"
        ) from error


async def _insert(
    connection: Connection, environment: str, blocks: Sequence[Block], left_out: AbstractSet[int]
) -> None:
    columns = zip(*block_rows(environment, blocks), strict=True)
    inserted = await connection.fetch(_INSERT_BLOCKS, *columns)
    if len(inserted) < len(blocks):
        new = {row["batch_seq"] for row in inserted}
        _log.warning("%d blocks were in Postgres already", len(blocks) - len(new))
        blocks = [block for block in blocks if block.header.batch_seq in new]
    for table, names, rows in rows_below_blocks(environment, blocks, left_out):
        await connection.copy_records_to_table(table, records=rows, columns=names)
    for row in authority_rows(environment, blocks):
        await connection.execute(_INSERT_AUTHORITY, *row)
    if blocks:
        newest = blocks[-1]
        await connection.execute(
            _MOVE_CURRENT_STATE,
            environment,
            newest.header.batch_seq,
            newest.block_hash,
            newest.header.batch_root,
            newest.roots.state_root,
        )
