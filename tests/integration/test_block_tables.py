"""Blocks reach Postgres in their record's transaction, and its constraints guard the chain."""

from typing import Any

import asyncpg
import msgspec
import pytest

from app.chain.header import NO_SIGNER, block_hash, command_identity
from app.model.entry import Hash32
from app.replication.postgres import Sink
from tests.support.block_chain import SIGNER, BlockChain, make_delegation
from tests.support.journal_entries import make_batch, make_entry
from tests.support.replicated_blocks import TABLES, apply, contents, insert_block, tick
from tests.support.replication_sink import ENVIRONMENT, rows


async def test_every_column_of_a_block(sink: Sink, chain: BlockChain, observer: Any) -> None:
    entries = [make_entry(), tick(), make_entry(), tick(command_identity_hash=Hash32(b"\x07" * 32))]
    batch = chain.batch(*entries, authority=make_delegation())
    assert batch.header is not None
    assert batch.roots is not None
    await apply(sink, batch)

    assert await rows(observer, "rsm_blocks") == [
        {
            "batch_seq": 0,
            "block_hash": block_hash(batch.header),
            "prev_block_hash": bytes(32),
            "commands_hash": batch.header.commands_hash,
            "batch_root": batch.header.batch_root,
            "command_count": 2,
            "first_seq": 0,
            "timestamp": 1_700_000_000_000,
            "signer": SIGNER,
            "signature": batch.header.signature,
            "first_command_id": 2,
            "last_command_id": 4,
            "prev_batch_seq": None,
        }
    ]
    assert await rows(observer, "rsm_roots") == [
        {"batch_seq": 0, **msgspec.structs.asdict(batch.roots)}
    ]
    assert await rows(observer, "rsm_block_commands") == [
        {
            "batch_seq": 0,
            "leaf_index": leaf_index,
            "command_id": command_id,
            "request_uuid": entries[command_id - 1].request_uuid,
            "command_type": "TickSnapshot",
            "command_identity_hash": identity,
            "entry": None,
        }
        for leaf_index, command_id, identity in (
            (0, 2, command_identity(entries[1])),
            (1, 4, b"\x07" * 32),
        )
    ]
    (current,) = await rows(observer, "rsm_current_state")
    assert current.pop("updated_at") is not None
    assert current == {
        "batch_seq": 0,
        "block_hash": block_hash(batch.header),
        "batch_root": batch.header.batch_root,
        "state_root": batch.roots.state_root,
    }
    assert await rows(observer, "signing_authorities") == [
        {
            "delegator": b"\xc0" * 20,
            "delegate": SIGNER,
            "valid_from": 5,
            "valid_until": 1005,
            "signature": b"\x0d" * 65,
            "batch_seq": 0,
        }
    ]


async def test_blocks_of_one_and_of_several_transactions_are_one_chain(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    progress = await apply(
        sink, chain.batch(tick(), tick()), chain.batch(make_entry()), chain.batch(tick())
    )
    progress = await apply(sink, chain.batch(make_entry()), after=progress)
    await apply(sink, chain.batch(tick(), tick(), signer=NO_SIGNER), after=progress)

    blocks = await rows(observer, "rsm_blocks")
    assert [block["batch_seq"] for block in blocks] == [0, 1, 2]
    assert [block["prev_batch_seq"] for block in blocks] == [None, 0, 1]
    assert [block["first_seq"] for block in blocks] == [0, 2, 3]
    assert [(block["first_command_id"], block["last_command_id"]) for block in blocks] == [
        (1, 2),
        (4, 4),
        (6, 7),
    ]
    assert (blocks[2]["signer"], blocks[2]["signature"]) == (bytes(20), b"")
    commands = await rows(observer, "rsm_block_commands")
    assert [(row["leaf_index"], row["command_id"]) for row in commands] == [
        (0, 1),
        (1, 2),
        (2, 4),
        (3, 6),
        (4, 7),
    ]
    (current,) = await rows(observer, "rsm_current_state")
    assert (current["batch_seq"], current["block_hash"]) == (2, blocks[2]["block_hash"])


async def test_records_without_blocks_leave_the_tables_empty(sink: Sink, observer: Any) -> None:
    await apply(sink, make_batch(1, make_entry(), tick()))
    held = await contents(observer)
    assert len(held["engine_commands"]) == 2
    assert not any(held[name] for name in TABLES if name.startswith(("rsm_", "signing")))


async def test_environments_have_chains_of_their_own(
    sink: Sink, database_url: str, observer: Any
) -> None:
    batches = [BlockChain().batch(tick(), authority=make_delegation()) for _ in range(2)]
    await apply(sink, batches[0])
    other = await Sink.connect(database_url, "another")
    await apply(other, batches[1])
    await other.close()
    found = await observer.fetch("SELECT environment, batch_seq FROM rsm_blocks ORDER BY 1")
    assert [tuple(row) for row in found] == [("another", 0), (ENVIRONMENT, 0)]
    assert len(await rows(observer, "rsm_current_state")) == 2
    assert len(await rows(observer, "signing_authorities")) == 2


# Constraints, by hand-written SQL.


async def chain_of_three(sink: Sink, observer: Any) -> list[bytes]:
    """Hashes of the blocks 0 to 2."""
    chain = BlockChain()
    await apply(sink, *(chain.batch(tick()) for _ in range(3)))
    return [row["block_hash"] for row in await rows(observer, "rsm_blocks")]


async def test_the_tables_take_a_block_that_goes_on(sink: Sink, observer: Any) -> None:
    hashes = await chain_of_three(sink, observer)
    await insert_block(observer, 3, hashes[2])
    await insert_block(observer, 0, bytes(32), environment="another")
    assert len(await rows(observer, "rsm_blocks")) == 5


async def test_the_tables_refuse_a_second_block_at_a_height(sink: Sink, observer: Any) -> None:
    hashes = await chain_of_three(sink, observer)
    for height, prev in ((0, bytes(32)), (1, hashes[0]), (2, hashes[1])):
        with pytest.raises(asyncpg.UniqueViolationError, match="rsm_blocks_pkey"):
            await insert_block(observer, height, prev)


async def test_the_tables_refuse_a_block_that_does_not_follow_its_predecessor(
    sink: Sink, observer: Any
) -> None:
    """Neither another hash, nor that of an older block, nor one behind a gap."""
    hashes = await chain_of_three(sink, observer)
    for height, prev in ((3, b"\xee" * 32), (3, hashes[1]), (4, hashes[2]), (3, bytes(32))):
        with pytest.raises(asyncpg.ForeignKeyViolationError, match="prev_block_hash"):
            await insert_block(observer, height, prev)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert_block(observer, 3, hashes[2], environment="another")


async def test_the_tables_refuse_a_chain_that_begins_anywhere_but_at_its_beginning(
    observer: Any,
) -> None:
    refused: list[tuple[int, bytes, dict[str, Any]]] = [
        (0, b"\1" * 32, {}),
        (0, bytes(32), {"first_seq": 1}),
        (-1, bytes(32), {"block_hash": b"\1" * 32}),
    ]
    for height, prev, fields in refused:
        with pytest.raises(asyncpg.CheckViolationError, match="beginning"):
            await insert_block(observer, height, prev, **fields)
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await insert_block(observer, 5, bytes(32))


@pytest.mark.parametrize(
    "fields",
    [
        {"block_hash": b"\1" * 31},
        {"commands_hash": b"\1" * 33},
        {"batch_root": b""},
        {"signer": b"\1" * 19},
        {"signature": b"\1" * 64},
        {"command_count": 0},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_the_tables_refuse_what_is_no_header(observer: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match=next(iter(fields))):
        await insert_block(observer, 0, bytes(32), **fields)


async def test_the_tables_keep_the_links_that_are_there(sink: Sink, observer: Any) -> None:
    """No block leaves the middle, none gets another hash, and the newest can't be taken back."""
    await chain_of_three(sink, observer)
    for statement in (
        "DELETE FROM rsm_blocks WHERE batch_seq = 1",
        "DELETE FROM rsm_blocks WHERE batch_seq = 2",
        "UPDATE rsm_blocks SET block_hash = prev_block_hash WHERE batch_seq = 1",
        "UPDATE rsm_blocks SET prev_block_hash = block_hash WHERE batch_seq = 2",
        "UPDATE rsm_current_state SET batch_seq = 1",
    ):
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await observer.execute(statement)
