"""Blocks of records become rows that say exactly what the records say."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from app.chain.header import NO_SIGNER, block_hash, derived_identity
from app.errors import ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import Entry, Hash32
from app.replication import block_rows
from app.replication.block_rows import Block, authority_rows, blocks_of, rows_below_blocks
from app.replication.rows import TableRows
from app.replication.schema import metadata
from tests.support.block_chain import SIGNER, BlockChain, make_delegation
from tests.support.journal_entries import make_entry, make_event

ENVIRONMENT = "testing"


def tick(**fields: Any) -> Entry:
    return make_entry(command_type="TickSnapshot", events=[make_event()], **fields)


def below(blocks: list[Block], *left_out: int) -> dict[str, TableRows]:
    return {table.table: table for table in rows_below_blocks(ENVIRONMENT, blocks, set(left_out))}


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("rsm_blocks", block_rows.BLOCK_COLUMNS),
        ("rsm_roots", block_rows.ROOT_COLUMNS),
        ("rsm_block_commands", block_rows.BLOCK_COMMAND_COLUMNS),
        ("signing_authorities", block_rows.AUTHORITY_COLUMNS),
    ],
)
def test_columns_are_the_declared_ones(table: str, columns: tuple[str, ...]) -> None:
    declared = metadata.tables[table].columns
    assert set(columns) == {column.name for column in declared if column.computed is None}


def test_a_block_has_every_field_of_its_header_and_the_ids_of_its_commands() -> None:
    chain = BlockChain()
    chain.batch(tick(), tick())
    batch = chain.batch(make_entry(), tick(), make_entry(), tick(), make_entry(received_ts_ms=99))
    header = batch.header
    assert header is not None
    (row,) = block_rows.block_rows(ENVIRONMENT, blocks_of([batch]))
    assert dict(zip(block_rows.BLOCK_COLUMNS, row, strict=True)) == {
        "environment": ENVIRONMENT,
        **msgspec.structs.asdict(header),
        "block_hash": block_hash(header),
        "first_command_id": 4,
        "last_command_id": 6,
    }
    assert (header.batch_seq, header.command_count, header.first_seq) == (1, 2, 2)
    assert (header.timestamp, header.signer, len(header.signature)) == (99, SIGNER, 65)


def test_leaves_go_on_behind_the_blocks_before_and_other_entries_are_none() -> None:
    chain = BlockChain()
    sent = Hash32(b"\x09" * 32)
    entries = [tick(), make_entry(), tick(command_identity_hash=sent), make_entry(), tick()]
    batches = [chain.batch(*entries[:3]), chain.batch(entries[3]), chain.batch(entries[4])]
    tables = below(blocks_of(batches))
    first, second, third = entries[0], entries[2], entries[4]
    assert tables["rsm_block_commands"].rows == [
        (ENVIRONMENT, 0, 0, 1, first.request_uuid, "TickSnapshot", derived(first), None),
        (ENVIRONMENT, 0, 1, 3, second.request_uuid, "TickSnapshot", sent, None),
        (ENVIRONMENT, 1, 2, 5, third.request_uuid, "TickSnapshot", derived(third), None),
    ]
    roots = [batch.roots for batch in batches if batch.roots is not None]
    assert tables["rsm_roots"].rows == [
        (ENVIRONMENT, height, *msgspec.structs.astuple(held)) for height, held in enumerate(roots)
    ]


def derived(entry: Entry) -> bytes:
    return derived_identity(entry.request_uuid.bytes, entry.command_data)


def test_an_identity_of_zeros_counts_as_none() -> None:
    entry = tick(command_identity_hash=Hash32(bytes(32)))
    (row,) = below(blocks_of([BlockChain().batch(entry)]))["rsm_block_commands"].rows
    assert row[6] == derived(entry)


def test_a_left_out_entry_is_kept_whole_in_its_block() -> None:
    chain = BlockChain()
    entries = [tick(), tick(duration_ms=4), tick()]
    rows = below(blocks_of([chain.batch(*entries)]), 2)["rsm_block_commands"].rows
    assert [row[-1] for row in rows] == [None, canonical_bytes(entries[1]), None]


def test_a_delegation_names_the_block_it_came_with() -> None:
    chain = BlockChain()
    delegation = make_delegation()
    batches = [chain.batch(tick()), chain.batch(tick(), authority=delegation), chain.batch(tick())]
    assert authority_rows(ENVIRONMENT, blocks_of(batches)) == [
        (ENVIRONMENT, b"\xc0" * 20, SIGNER, 5, 1005, b"\x0d" * 65, 1)
    ]


def test_an_unsigned_block_has_an_empty_signature() -> None:
    (block,) = blocks_of([BlockChain().batch(tick(), signer=NO_SIGNER)])
    (row,) = block_rows.block_rows(ENVIRONMENT, [block])
    assert (row[9], row[10]) == (bytes(20), b"")


def test_batches_without_block_commands_have_no_rows() -> None:
    assert blocks_of([BlockChain().batch(make_entry(command_type="PlaceOrder"))]) == []
    assert rows_below_blocks(ENVIRONMENT, []) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"roots": None},
        {"block_indices": None},
        {"header": None},
        {"block_indices": [0, 2]},
        {"block_indices": [-1, 0]},
        {"block_indices": [0, 0]},
        {"block_indices": [1, 0]},
        {"block_indices": []},
        {"header": None, "roots": None},
        {"header": None, "roots": None, "block_indices": None, "authority": make_delegation()},
    ],
    ids=repr,
)
def test_a_block_that_is_not_whole_is_refused(damage: dict[str, Any]) -> None:
    batch = BlockChain().batch(tick(), tick())
    with pytest.raises(ReplicationRefused, match="not whole"):
        blocks_of([replace(batch, **damage)])


@pytest.mark.parametrize("indices", [[0], [0, 1, 2]])
def test_a_block_that_counts_other_commands_than_it_covers_is_refused(indices: list[int]) -> None:
    batch = BlockChain().batch(tick(), tick(), make_entry())
    with pytest.raises(ReplicationRefused, match="block 0 in the log counts 2 commands"):
        blocks_of([replace(batch, block_indices=indices)])
