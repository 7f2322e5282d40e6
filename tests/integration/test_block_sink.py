"""The sink stops at a block that contradicts the chain, and takes every other, whole."""

from typing import Any

import pytest
from msgspec.structs import replace

from app.chain.header import command_identity
from app.errors import ReplicationRefused
from app.model.codec import canonical_bytes
from app.replication.postgres import Sink
from app.replication.rows import Progress
from app.wal.record import Batch
from tests.support.block_chain import BlockChain, make_delegation
from tests.support.journal_entries import make_entry, make_event
from tests.support.replicated_blocks import apply, contents, insert_block, tick
from tests.support.replication_sink import BEGINNING, rows


async def expect_refused(
    sink: Sink, observer: Any, batch: Batch, progress: Progress, reason: str
) -> None:
    before = await contents(observer)
    with pytest.raises(ReplicationRefused, match=reason):
        await apply(sink, batch, after=progress)
    assert sink.closed
    assert await contents(observer) == before


@pytest.mark.parametrize("beside", ["nothing", "a dead letter"])
@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"batch_seq": 1}, r'blocks 1 to 1 .* "rsm_blocks_pkey"'),
        ({"prev_block_hash": b"\xee" * 32}, r"blocks 2 to 2 .* not present in table"),
        ({"batch_seq": 3}, r"blocks 3 to 3 .* not present in table"),
        ({"batch_seq": 0, "prev_block_hash": bytes(32), "first_seq": 0}, "rsm_blocks_pkey"),
        ({"batch_seq": 0, "prev_block_hash": bytes(32)}, "beginning"),
        ({"commands_hash": b"\1" * 31}, "commands_hash"),
    ],
    ids=[
        "second at a height",
        "other predecessor",
        "gap",
        "second beginning",
        "no beginning",
        "31",
    ],
)
async def test_a_block_that_contradicts_the_chain_stops_replication(
    sink: Sink,
    chain: BlockChain,
    observer: Any,
    forged: dict[str, Any],
    reason: str,
    beside: str,
) -> None:
    """And is no dead letter, nor are its entries, whatever else the record holds."""
    progress = await apply(sink, chain.batch(tick()), chain.batch(tick()))
    others = [make_entry(events=[make_event("\0")])] if beside == "a dead letter" else []
    batch = chain.batch(tick(), *others, authority=make_delegation())
    assert batch.header is not None
    batch = replace(batch, header=replace(batch.header, **forged))
    await expect_refused(sink, observer, batch, progress, reason)


async def test_a_chain_that_does_not_begin_at_height_0_stops_replication(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    chain.batch(tick())
    await expect_refused(sink, observer, chain.batch(tick()), BEGINNING, "not present in table")


async def test_a_block_that_is_not_whole_stops_replication(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    batch = replace(chain.batch(tick()), roots=None)
    with pytest.raises(ReplicationRefused, match="not whole"):
        await apply(sink, batch)
    assert not any((await contents(observer)).values())


async def test_replaying_old_blocks_changes_nothing_and_goes_on(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    """As after the progress row was lost or went back: blocks, leaves and pointer stay."""
    batches = [chain.batch(tick(), make_entry(), authority=make_delegation()) for _ in range(3)]
    await apply(sink, *batches)
    before = await contents(observer)
    await observer.execute("DELETE FROM replication_progress")
    progress = await apply(sink, batches[0])
    after = await contents(observer)
    del before["replication_progress"], after["replication_progress"]
    assert after == before

    await apply(sink, *batches[1:], chain.batch(tick()), after=progress)
    (current,) = await rows(observer, "rsm_current_state")
    assert current["batch_seq"] == 3
    assert [row["leaf_index"] for row in await rows(observer, "rsm_block_commands")] == [0, 1, 2, 3]
    assert len(await rows(observer, "rsm_roots")) == 4
    assert len(await rows(observer, "signing_authorities")) == 1


async def test_the_current_state_never_moves_back(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    """Even where it is ahead of the blocks."""
    progress = await apply(sink, chain.batch(tick()))
    (first,) = await rows(observer, "rsm_blocks")
    ahead = b"\xb0" * 31 + b"\x09"
    await observer.execute(
        "ALTER TABLE rsm_blocks DROP CONSTRAINT "
        "rsm_blocks_environment_prev_batch_seq_prev_block_hash_fkey"
    )
    await insert_block(observer, 9, first["block_hash"])
    await observer.execute("UPDATE rsm_current_state SET batch_seq = 9, block_hash = $1", ahead)
    await apply(sink, chain.batch(tick()), after=progress)
    (current,) = await rows(observer, "rsm_current_state")
    assert (current["batch_seq"], current["block_hash"]) == (9, ahead)


async def test_a_delegation_that_comes_again_stays_as_it_came_first(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    first, later = make_delegation(), make_delegation(900)
    batches = [chain.batch(tick(), authority=held) for held in (first, first, later)]
    await apply(sink, *batches)
    found = await rows(observer, "signing_authorities")
    assert [(row["valid_from"], row["batch_seq"]) for row in found] == [(5, 0), (900, 2)]


# Entries that have no row of their own.


async def test_a_dead_letter_is_in_its_block_and_the_block_goes_in(
    sink: Sink, chain: BlockChain, observer: Any
) -> None:
    entries = [tick(), tick(events=[make_event("a\0b")]), tick(), tick(events=[make_event("\0")])]
    progress = await apply(sink, chain.batch(*entries, authority=make_delegation()))
    assert progress.dead_letters == 2
    commands = await rows(observer, "rsm_block_commands")
    assert [row["command_id"] for row in commands] == [1, 2, 3, 4]
    assert [row["command_identity_hash"] for row in commands] == [*map(command_identity, entries)]
    assert [row["entry"] for row in commands] == [None] * 4
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1, 3]
    letters = await rows(observer, "dead_letters")
    assert [row["entry"] for row in letters] == [*map(canonical_bytes, (entries[1], entries[3]))]
    assert len(await rows(observer, "rsm_blocks")) == len(await rows(observer, "rsm_roots")) == 1
    assert len(await rows(observer, "rsm_current_state")) == 1
    assert len(await rows(observer, "signing_authorities")) == 1
    after = await apply(sink, chain.batch(tick()), after=progress)
    assert after.dead_letters == 2


@pytest.mark.parametrize("beside", [[], ["\0"]], ids=["alone", "beside a dead letter"])
async def test_a_repeated_entry_is_kept_whole_in_its_block(
    sink: Sink, chain: BlockChain, observer: Any, beside: list[str]
) -> None:
    """Beyond the duplicate window: its own row is ignored, but the block commits to it."""
    first = tick()
    progress = await apply(sink, chain.batch(first))
    again = tick(request_uuid=first.request_uuid, command_data=b"\x01other")
    others = [make_entry(events=[make_event(topic)]) for topic in beside]
    await apply(sink, chain.batch(tick(), again, *others), after=progress)
    commands = await rows(observer, "rsm_block_commands")
    assert [row["entry"] for row in commands] == [None, None, canonical_bytes(again)]
    assert commands[2]["command_identity_hash"] == command_identity(again)
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1, 2]
