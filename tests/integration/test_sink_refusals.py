"""What Postgres refuses is a dead letter; what contradicts Postgres stops replication."""

from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from app.errors import ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import MAX_INT64, Digest, Entry
from app.replication.postgres import Sink
from app.replication.rows import Progress
from tests.support.journal_entries import (
    make_batch,
    make_entry,
    make_event,
    make_full_entry,
    make_update,
)
from tests.support.replication_sink import WAL, apply, balances, expect_rows, rows

ENDLESS: dict[str, Any] = {}
ENDLESS["x"] = ENDLESS
POISON: dict[str, dict[str, Any]] = {
    "NUL in text": {"events": [make_event("a\0b")]},
    "lone surrogate": {"events": [make_event("\udc80")]},
    "integer beyond 64 bits": {"order_id": MAX_INT64 + 1},
    "l2_sequence beyond 64 bits": {"events": [make_event(l2_sequence=MAX_INT64 + 1)]},
    "text that is no decimal": {"balance_updates": [make_update(0, 1, "twelve")]},
    "decimal that is not finite": {"balance_updates": [make_update(0, 1, "NaN")]},
    "decimal too large": {"balance_updates": [make_update(0, 1, "1e200000")]},
    "address of 19 bytes": {"balance_updates": [make_update(0, 1, "1", wallet=b"\1" * 19)]},
    "hash of 31 bytes": {"command_identity_hash": b"\1" * 31},
    "null where a value is required": {"command_data": None},
    "another type": {"duration_ms": "soon"},
    "digest without an encoding": {"pre_digest": Digest(symbols={"x": object()})},
    "digest with an integer beyond 64 bits": {"pre_digest": Digest(symbols={"x": 2**70})},
    "digest nested without end": {"pre_digest": Digest(symbols=ENDLESS)},
    "topic too long for its index": {"events": [make_event("x" * 9_000_000)]},
}


@pytest.mark.parametrize("fields", POISON.values(), ids=POISON.keys())
async def test_an_entry_that_postgres_refuses_is_a_dead_letter_and_the_rest_goes_in(
    sink: Sink, observer: Any, fields: dict[str, Any]
) -> None:
    fine = [make_full_entry() for _ in range(5)]
    poison = make_full_entry(**fields)
    after = await apply(sink, *fine[:3], poison, *fine[3:])

    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [
        1,
        2,
        3,
        5,
        6,
    ]
    for name in ("engine_events", "directive_outbox", "fill_side_effects", "balance_updates"):
        ids = [row["command_id"] for row in await rows(observer, name)]
        assert ids == [1, 1, 2, 2, 3, 3, 5, 5, 6, 6], name
    for name in ("engine_command_digests", "cash_withdrawals"):
        assert len(await rows(observer, name)) == 5
    (letter,) = await rows(observer, "dead_letters")
    assert (letter["command_id"], letter["request_uuid"]) == (4, poison.request_uuid)
    assert letter["error"]
    assert after == await sink.read_progress()
    assert (after.dead_letters, after.last_command_id, after.last_l2_seq) == (1, 6, 41)
    assert (await balances(observer))[5] == (Decimal(7), 6)


async def test_a_dead_letter_holds_the_entry_whole_and_the_error(sink: Sink, observer: Any) -> None:
    poison = make_full_entry(events=[make_event("a\0b")])
    await apply(sink, poison)
    (letter,) = await rows(observer, "dead_letters")
    assert letter["entry"] == canonical_bytes(poison)
    assert letter["sqlstate"] == "22021"
    assert "0x00" in letter["error"]
    assert letter["recorded_at"] is not None


async def test_dead_letters_are_counted_over_transactions(sink: Sink, observer: Any) -> None:
    def poison() -> Entry:
        return make_entry(events=[make_event("\0")])

    progress = await apply(sink, poison(), make_entry(), poison())
    progress = await apply(sink, poison(), after=progress)
    progress = await apply(sink, make_entry(), after=progress)
    assert progress.dead_letters == 3
    assert progress == await sink.read_progress()
    assert [row["command_id"] for row in await rows(observer, "dead_letters")] == [1, 3, 4]
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [2, 5]


async def test_a_duplicate_beside_a_dead_letter_is_still_left_out(
    sink: Sink, observer: Any
) -> None:
    first = make_entry(events=[make_event("first")])
    poison = make_entry(events=[make_event("\0")])
    again = make_entry(request_uuid=first.request_uuid, events=[make_event("second")])
    await apply(sink, first, poison, again)
    assert [row["command_id"] for row in await rows(observer, "engine_commands")] == [1]
    assert [row["event_topic"] for row in await rows(observer, "engine_events")] == ["first"]


@pytest.mark.parametrize(
    "claimed",
    [
        Progress(wal_id="another", wal_offset=10, last_command_id=1),
        Progress(wal_id="another"),
        Progress(wal_id=WAL),
        Progress(wal_id=WAL, wal_offset=5, last_command_id=1),
        Progress(wal_id=WAL, wal_offset=20, last_command_id=1),
    ],
    ids=repr,
)
async def test_progress_that_differs_from_the_row_is_refused_and_nothing_inserted(
    sink: Sink, observer: Any, claimed: Progress
) -> None:
    truth = await apply(sink, make_entry())
    batch = make_batch(50, make_entry(), make_entry(events=[make_event("\0")]))
    with pytest.raises(ReplicationRefused, match=r"should be at .* but is at 10 of wal-1"):
        await sink.apply([batch], 100, claimed)
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=truth.wal_offset)


async def test_a_progress_row_that_is_gone_is_refused(sink: Sink, observer: Any) -> None:
    progress = await apply(sink, make_entry())
    await observer.execute("DELETE FROM replication_progress")
    with pytest.raises(ReplicationRefused, match="is gone"):
        await apply(sink, make_entry(), after=progress)
    assert len(await rows(observer, "engine_commands")) == 1


async def test_a_command_id_that_is_not_newer_is_refused(sink: Sink, observer: Any) -> None:
    progress = await apply(sink, make_entry(), make_entry())
    with pytest.raises(ReplicationRefused, match="command_id 2, but Postgres is at 2"):
        await sink.apply([make_batch(2, make_entry())], 50, progress)
    await expect_rows(observer, commands=2, dead_letters=0, wal_offset=10)


async def test_another_entry_under_a_command_id_is_a_contradiction_not_a_dead_letter(
    sink: Sink, observer: Any
) -> None:
    progress = await apply(sink, make_entry())
    await observer.execute(
        "INSERT INTO engine_commands SELECT environment, 2, $1, received_ts_ms, command_type,"
        " command_data, response_data, order_id, duration_ms FROM engine_commands",
        uuid4(),
    )
    with pytest.raises(ReplicationRefused, match="already holds another entry"):
        await apply(sink, make_entry(), after=progress)
    await expect_rows(observer, commands=2, dead_letters=0, wal_offset=10)
