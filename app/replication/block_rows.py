"""The blocks of WAL records as rows of the tables in Postgres (protocol, section 6).

Pure: values in, values out. Every block command of a record has a row here, whatever becomes of its
entry: a block commits to dead letters and repeated entries too.
"""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from operator import lt
from typing import Final, NamedTuple, TypeVar

from app.chain.header import Delegation, Header, Roots, block_hash, command_identity
from app.errors import ReplicationRefused
from app.replication.rows import Numbered, Row, TableRows, whole_entry
from app.wal.record import Batch

BLOCK_COLUMNS: Final = (
    "environment",
    "batch_seq",
    "block_hash",
    "prev_block_hash",
    "commands_hash",
    "batch_root",
    "command_count",
    "first_seq",
    "timestamp",
    "signer",
    "signature",
    "first_command_id",
    "last_command_id",
)
ROOT_COLUMNS: Final = (
    "environment",
    "batch_seq",
    "state_root",
    "risk_root",
    "command_root",
    "obligation_root",
    "intent_root",
)
BLOCK_COMMAND_COLUMNS: Final = (
    "environment",
    "batch_seq",
    "leaf_index",
    "command_id",
    "request_uuid",
    "command_type",
    "command_identity_hash",
    "entry",
)
AUTHORITY_COLUMNS: Final = (
    "environment",
    "delegator",
    "delegate",
    "valid_from",
    "valid_until",
    "signature",
    "batch_seq",
)

_ROOTS: Final = ROOT_COLUMNS[2:]
_NO_ENTRIES: Final[frozenset[int]] = frozenset()
_Part = TypeVar("_Part")


class Block(NamedTuple):
    """A block as its record has it: `commands` are its block commands, in batch order."""

    header: Header
    roots: Roots
    block_hash: bytes
    commands: list[Numbered]
    authority: Delegation | None


def blocks_of(batches: Iterable[Batch]) -> list[Block]:
    """The blocks of `batches`, in order.

    Raises `ReplicationRefused` for a record whose block is not whole, or counts other commands than
    it covers.
    """
    blocks = []
    for batch in batches:
        header = batch.header
        if header is not None:
            roots, indices = _part(batch, batch.roots), _part(batch, batch.block_indices)
            commands = _commands_at(batch, indices)
            if header.command_count != len(commands):
                raise ReplicationRefused(
                    f"block {header.batch_seq} in the log counts {header.command_count} commands "
                    f"and covers {len(commands)}"
                )
            blocks.append(Block(header, roots, block_hash(header), commands, batch.authority))
        elif not (batch.roots is None and batch.block_indices is None and batch.authority is None):
            raise _not_whole(batch)
    return blocks


def block_rows(environment: str, blocks: Iterable[Block]) -> list[Row]:
    """The rows of `rsm_blocks`, columns as in `BLOCK_COLUMNS`."""
    return [
        (
            environment,
            block.header.batch_seq,
            block.block_hash,
            block.header.prev_block_hash,
            block.header.commands_hash,
            block.header.batch_root,
            block.header.command_count,
            block.header.first_seq,
            block.header.timestamp,
            block.header.signer,
            block.header.signature,
            block.commands[0][0],
            block.commands[-1][0],
        )
        for block in blocks
    ]


def rows_below_blocks(
    environment: str, blocks: Sequence[Block], left_out: AbstractSet[int] = _NO_ENTRIES
) -> list[TableRows]:
    """The rows that go in beside new `blocks`, for each table that gets any.

    `left_out` are the `command_id`s of repeated entries: their rows hold the entry whole.
    """
    roots = [
        (environment, block.header.batch_seq, *(getattr(block.roots, name) for name in _ROOTS))
        for block in blocks
    ]
    commands = [
        (
            environment,
            block.header.batch_seq,
            leaf_index,
            command_id,
            entry.request_uuid,
            entry.command_type,
            command_identity(entry),
            whole_entry(entry) if command_id in left_out else None,
        )
        for block in blocks
        for leaf_index, (command_id, entry) in enumerate(block.commands, block.header.first_seq)
    ]
    tables = [
        TableRows("rsm_roots", ROOT_COLUMNS, roots),
        TableRows("rsm_block_commands", BLOCK_COMMAND_COLUMNS, commands),
    ]
    return [table for table in tables if table.rows]


def authority_rows(environment: str, blocks: Iterable[Block]) -> list[Row]:
    """The rows of `signing_authorities`, columns as in `AUTHORITY_COLUMNS`."""
    return [
        (
            environment,
            authority.delegator,
            authority.delegate,
            authority.valid_from,
            authority.valid_until,
            authority.signature,
            block.header.batch_seq,
        )
        for block in blocks
        if (authority := block.authority) is not None
    ]


def _part(batch: Batch, part: _Part | None) -> _Part:
    if part is None:
        raise _not_whole(batch)
    return part


def _commands_at(batch: Batch, indices: Sequence[int]) -> list[Numbered]:
    ascending = all(map(lt, indices, indices[1:]))
    if not (indices and ascending and indices[0] >= 0 and indices[-1] < len(batch.commands)):
        raise _not_whole(batch)
    return [(batch.first_command_id + index, batch.commands[index]) for index in indices]


def _not_whole(batch: Batch) -> ReplicationRefused:
    return ReplicationRefused(
        f"the record at offset {batch.offset} of the log holds a block that is not whole"
    )
