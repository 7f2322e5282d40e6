"""WAL batches become rows exactly once, whatever they hold and whenever the connection goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from app.errors import DatabaseUnavailable, ReplicationRefused
from app.model.codec import canonical_bytes
from app.model.entry import MAX_INT64, Digest, Entry
from app.replication.connection import Limits
from app.replication.postgres import Sink
from app.replication.rows import Progress
from tests.support.journal_entries import (
    make_batch,
    make_entry,
    make_event,
    make_full_entry,
    make_update,
    make_withdrawal,
    wallet,
)
from tests.support.postgres_proxy import PostgresProxy

ENVIRONMENT = "testing"
WAL = "wal-1"
SHORT = Limits(connect_s=0.5, statement_s=0.4, lock_s=0.2, idle_in_transaction_s=5, grace_s=0.1)


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[Sink]:
    connected = await Sink.connect(database_url, ENVIRONMENT)
    yield connected
    await connected.close()


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def table(observer: Any, name: str) -> list[dict[str, Any]]:
    rows = await observer.fetch(f"SELECT * FROM {name} ORDER BY 1, 2, 3")
    return [{key: value for key, value in row.items() if key != "environment"} for row in rows]


async def balances(observer: Any) -> dict[int, tuple[Decimal, int]]:
    rows = await observer.fetch("SELECT wallet, balance_after, command_id FROM account_balances")
    return {int.from_bytes(row[0], "big"): (row[1], row[2]) for row in rows}


async def apply(sink: Sink, *entries: Entry, after: Progress | None = None) -> Progress:
    """Replicate one batch behind `after`, ten bytes long."""
    before = after or Progress(wal_id=WAL)
    batch = make_batch(before.last_command_id + 1, *entries)
    return await sink.apply([batch], before.wal_offset + 10, before)


async def test_every_field_of_an_entry_lands_in_its_table(sink: Sink, observer: Any) -> None:
    entry = make_full_entry()
    await apply(sink, entry)

    assert await table(observer, "engine_commands") == [
        {
            "command_id": 1,
            "request_uuid": entry.request_uuid,
            "received_ts_ms": 1_700_000_000_000,
            "command_type": "TickSnapshot",
            "command_data": b"\x01\x80",
            "response_data": b"",
            "order_id": -7,
            "duration_ms": 12,
            "command_identity_hash": b"\x07" * 32,
            "rsm_state_digest": b"state",
        }
    ]
    assert await table(observer, "engine_events") == [
        {
            "command_id": 1,
            "event_idx": 0,
            "event_topic": "fills",
            "event_key": "k",
            "event_data": b"\x01\x90",
            "l2_sequence": 41,
            "event_type": "Filled",
        },
        {
            "command_id": 1,
            "event_idx": 1,
            "event_topic": "books",
            "event_key": None,
            "event_data": b"",
            "l2_sequence": None,
            "event_type": "Filled",
        },
    ]
    assert await table(observer, "directive_outbox") == [
        {
            "command_id": 1,
            "append_idx": number,
            "directive_id": f"d{number}",
            "action_key": "a",
            "wallet": wallet(1),
            "account": wallet(2),
            "signer": wallet(3),
            "nonce": number,
            "idempotency_key": "same",
            "payload": b"p",
            "created_at_ms": 9,
            "expires_at_ms": expires,
            "status": "needs_rsm_signature",
        }
        for number, expires in ((0, 10), (1, None))
    ]


async def test_side_effects_of_an_entry_land_in_their_tables(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry())

    assert await table(observer, "fill_side_effects") == [
        {
            "command_id": 1,
            "effect_idx": index,
            "event_idx": 0,
            "trade_id": 8,
            "taker_ledger_delta": Decimal("-1.25"),
            "maker_ledger_delta": Decimal("1.250"),
            "taker_premium_delta": Decimal(0),
            "maker_premium_delta": Decimal("1234567890123456.123456789012"),
            "underlying_notional": notional,
        }
        for index, notional in ((0, None), (1, Decimal(3)))
    ]
    assert await table(observer, "cash_withdrawals") == [
        {
            "command_id": 1,
            "wallet": wallet(4),
            "request_id": "w-1",
            "amount": Decimal(10),
            "balance_after": Decimal("90.5"),
            "timestamp_ms": 6,
        }
    ]
    shared = {"wallet": wallet(5), "delta": Decimal("-1.25"), "reason": "Fee", "timestamp_ms": 5}
    assert await table(observer, "balance_updates") == [
        {
            "command_id": 1,
            "update_idx": 0,
            "balance_update_seq": 1,
            "balance_after": Decimal(7),
            "reference_id": None,
            "source_command_id": 1,
            **shared,
        },
        {
            "command_id": 1,
            "update_idx": 1,
            "balance_update_seq": 0,
            "balance_after": Decimal(8),
            "reference_id": "r",
            "source_command_id": 77,
            **shared,
        },
    ]


async def test_digests_are_a_version_byte_and_a_whole_map(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry(), make_entry())
    full, empty = await table(observer, "engine_command_digests")
    zeros = {"next_order_id": 0, "next_trade_id": 0, "l2_seq": 0, "symbols": {}}
    assert full["pre_digest"][:1] == b"\x01"
    assert msgspec.msgpack.decode(full["pre_digest"][1:]) == {
        "next_order_id": 1,
        "next_trade_id": 2,
        "l2_seq": 3,
        "symbols": {"BTC": [1, "x"]},
    }
    assert msgspec.msgpack.decode(full["post_digest"][1:]) == zeros | {
        "next_order_id": 2,
        "l2_seq": 4,
    }
    assert msgspec.msgpack.decode(empty["pre_digest"][1:]) == zeros


async def test_digests_stay_out_when_they_are_not_wanted(database_url: str, observer: Any) -> None:
    sink = await Sink.connect(database_url, ENVIRONMENT, persist_digests=False)
    await apply(sink, make_full_entry())
    await sink.close()
    assert await table(observer, "engine_command_digests") == []
    assert len(await table(observer, "engine_commands")) == 1


async def test_an_entry_with_nothing_but_what_is_required(sink: Sink, observer: Any) -> None:
    entry = make_entry()
    await apply(sink, entry)
    (row,) = await table(observer, "engine_commands")
    empty = (
        "command_type",
        "response_data",
        "order_id",
        "command_identity_hash",
        "rsm_state_digest",
    )
    assert {row[name] for name in empty} == {None}
    assert row["duration_ms"] == 0


async def test_command_ids_follow_each_batch_and_progress_moves(sink: Sink, observer: Any) -> None:
    batches = [
        make_batch(5, make_entry(events=[make_event(l2_sequence=9)]), make_entry()),
        make_batch(10, make_entry(events=[make_event(l2_sequence=3), make_event()])),
    ]
    after = await sink.apply(batches, 300, Progress(wal_id=WAL))
    assert after == Progress(wal_id=WAL, wal_offset=300, last_command_id=10, last_l2_seq=9)
    assert await sink.read_progress() == after
    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [5, 6, 10]
    further = await sink.apply([], 340, after)
    assert further == await sink.read_progress()
    assert (further.wal_offset, further.last_command_id, further.last_l2_seq) == (340, 10, 9)


async def test_progress_is_none_before_the_first_record(sink: Sink) -> None:
    assert await sink.read_progress() is None


async def test_environments_do_not_meet(sink: Sink, database_url: str, observer: Any) -> None:
    entry = make_full_entry()
    await apply(sink, entry)
    other = await Sink.connect(database_url, "another")
    assert await other.read_progress() is None
    await apply(other, entry)
    await other.close()
    assert len(await table(observer, "engine_commands")) == 2
    assert len(await table(observer, "account_balances")) == 4


async def test_a_repeated_request_uuid_leaves_the_first_row_and_nothing_of_the_second(
    sink: Sink, observer: Any
) -> None:
    first = make_full_entry(events=[make_event("first", l2_sequence=1)])
    progress = await apply(sink, first)
    repeated = make_full_entry(
        request_uuid=first.request_uuid,
        events=[make_event("second", l2_sequence=2)],
        balance_updates=[make_update(9, 5, "999")],
        cash_withdrawal_side_effect=make_withdrawal(4, "999"),
        duration_ms=999,
    )
    survivor = make_entry(events=[make_event("third")])
    progress = await apply(sink, repeated, survivor, after=progress)

    commands = await table(observer, "engine_commands")
    assert [(row["command_id"], row["duration_ms"]) for row in commands] == [(1, 12), (3, 0)]
    topics = [row["event_topic"] for row in await table(observer, "engine_events")]
    assert topics == ["first", "third"]
    for name in ("directive_outbox", "fill_side_effects", "cash_withdrawals", "balance_updates"):
        assert {row["command_id"] for row in await table(observer, name)} == {1}
    assert len(await table(observer, "engine_command_digests")) == 2
    assert await balances(observer) == {4: (Decimal("90.5"), 1), 5: (Decimal(7), 1)}
    assert (progress.last_command_id, progress.dead_letters) == (3, 0)


async def test_a_request_uuid_twice_in_one_transaction(sink: Sink, observer: Any) -> None:
    first = make_entry(balance_updates=[make_update(0, 1, "1")])
    second = make_entry(request_uuid=first.request_uuid, balance_updates=[make_update(0, 1, "2")])
    await apply(sink, first, second)
    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [1]
    assert await balances(observer) == {1: (Decimal(1), 1)}


async def test_balance_of_the_highest_sequence_within_an_entry(sink: Sink, observer: Any) -> None:
    updates = [make_update(7, 1, "70"), make_update(9, 1, "90"), make_update(8, 1, "80")]
    await apply(sink, make_entry(balance_updates=updates))
    assert await balances(observer) == {1: (Decimal(90), 1)}


async def test_balance_of_the_newest_command_in_a_transaction(sink: Sink, observer: Any) -> None:
    older = make_entry(balance_updates=[make_update(99, 1, "1"), make_update(99, 2, "2")])
    newer = make_entry(balance_updates=[make_update(0, 1, "3")])
    await apply(sink, older, newer)
    assert await balances(observer) == {1: (Decimal(3), 2), 2: (Decimal(2), 1)}


async def test_balance_of_a_later_transaction_wins(sink: Sink, observer: Any) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(5, 1, "1")]))
    await apply(sink, make_entry(balance_updates=[make_update(0, 1, "2")]), after=progress)
    assert await balances(observer) == {1: (Decimal(2), 2)}


async def test_an_older_command_never_overwrites_a_balance(sink: Sink, observer: Any) -> None:
    await observer.execute(
        "INSERT INTO account_balances VALUES ($1, $2, 5, 50, 0)", ENVIRONMENT, wallet(1)
    )
    await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    assert await balances(observer) == {1: (Decimal(5), 50)}


async def test_a_withdrawal_counts_where_its_entry_has_no_update_for_the_wallet(
    sink: Sink, observer: Any
) -> None:
    alone = make_entry(cash_withdrawal_side_effect=make_withdrawal(1, "10"))
    with_other = make_entry(
        cash_withdrawal_side_effect=make_withdrawal(2, "20"),
        balance_updates=[make_update(0, 3, "30")],
    )
    with_own = make_entry(
        cash_withdrawal_side_effect=make_withdrawal(4, "40"),
        balance_updates=[make_update(0, 4, "44")],
    )
    await apply(sink, alone, with_other, with_own)
    assert await balances(observer) == {
        1: (Decimal(10), 1),
        2: (Decimal(20), 2),
        3: (Decimal(30), 2),
        4: (Decimal(44), 3),
    }


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

    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [
        1,
        2,
        3,
        5,
        6,
    ]
    for name in ("engine_events", "directive_outbox", "fill_side_effects", "balance_updates"):
        ids = [row["command_id"] for row in await table(observer, name)]
        assert ids == [1, 1, 2, 2, 3, 3, 5, 5, 6, 6], name
    for name in ("engine_command_digests", "cash_withdrawals"):
        assert len(await table(observer, name)) == 5
    (letter,) = await table(observer, "dead_letters")
    assert (letter["command_id"], letter["request_uuid"]) == (4, poison.request_uuid)
    assert letter["error"]
    assert after == await sink.read_progress()
    assert (after.dead_letters, after.last_command_id, after.last_l2_seq) == (1, 6, 41)
    assert (await balances(observer))[5] == (Decimal(7), 6)


async def test_a_dead_letter_holds_the_entry_whole_and_the_error(sink: Sink, observer: Any) -> None:
    poison = make_full_entry(events=[make_event("a\0b")])
    await apply(sink, poison)
    (letter,) = await table(observer, "dead_letters")
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
    assert [row["command_id"] for row in await table(observer, "dead_letters")] == [1, 3, 4]
    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [2, 5]


async def test_a_duplicate_beside_a_dead_letter_is_still_left_out(
    sink: Sink, observer: Any
) -> None:
    first = make_entry(events=[make_event("first")])
    poison = make_entry(events=[make_event("\0")])
    again = make_entry(request_uuid=first.request_uuid, events=[make_event("second")])
    await apply(sink, first, poison, again)
    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [1]
    assert [row["event_topic"] for row in await table(observer, "engine_events")] == ["first"]


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
    assert len(await table(observer, "engine_commands")) == 1


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


async def expect_rows(observer: Any, *, commands: int, dead_letters: int, wal_offset: int) -> None:
    assert len(await table(observer, "engine_commands")) == commands
    assert len(await table(observer, "dead_letters")) == dead_letters
    (row,) = await table(observer, "replication_progress")
    assert row["wal_offset"] == wal_offset


async def test_a_second_sink_of_the_environment_is_turned_away(
    sink: Sink, database_url: str
) -> None:
    with pytest.raises(
        DatabaseUnavailable, match="another process replicates environment 'testing'"
    ):
        await Sink.connect(database_url, ENVIRONMENT)
    await sink.close()
    await (await Sink.connect(database_url, ENVIRONMENT)).close()


async def test_a_database_without_schema_is_turned_away(empty_database_url: str) -> None:
    with pytest.raises(
        DatabaseUnavailable, match=r"revision none.* needs 0002: run `journal migrate`"
    ):
        await Sink.connect(empty_database_url, ENVIRONMENT)


async def test_a_database_at_another_revision_is_turned_away(
    database_url: str, observer: Any
) -> None:
    await observer.execute("UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(
        DatabaseUnavailable, match=r"revision 0000.* needs 0002: run `journal migrate`"
    ):
        await Sink.connect(database_url, ENVIRONMENT)


async def kill_sinks(observer: Any) -> None:
    """End every replication backend, and wait until they are gone."""
    killed = await observer.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE application_name = 'journal-replication' AND datname = current_database()"
    )
    assert killed


async def test_a_killed_backend_is_unavailable_and_replication_resumes_exactly_once(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(), make_entry())
    await kill_sinks(observer)
    batch = make_batch(3, make_full_entry())
    with pytest.raises(DatabaseUnavailable):
        await sink.apply([batch], 20, progress)
    assert sink.closed

    resumed = await Sink.connect(database_url, ENVIRONMENT)
    assert await resumed.read_progress() == progress
    after = await resumed.apply([batch], 20, progress)
    assert after == await resumed.read_progress()
    await resumed.close()
    assert [row["command_id"] for row in await table(observer, "engine_commands")] == [1, 2, 3]
    assert len(await table(observer, "engine_events")) == 2


@asynccontextmanager
async def held_balances(database_url: str) -> AsyncIterator[None]:
    """Another transaction has locked every balance meanwhile."""
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM account_balances FOR UPDATE")
            yield
    finally:
        await connection.close()


async def until_blocked(observer: Any) -> None:
    """Wait until the sink's backend waits for a lock."""
    async with asyncio.timeout(20):
        while not await observer.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name = 'journal-replication' AND datname = current_database()"
        ):
            pass


async def test_a_backend_killed_in_the_middle_of_a_transaction_leaves_nothing_of_it(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_full_entry(balance_updates=[make_update(0, 1, "2")])
    async with held_balances(database_url):
        applying = asyncio.create_task(apply(sink, update, after=progress), name="applying")
        await until_blocked(observer)
        await kill_sinks(observer)
        with pytest.raises(DatabaseUnavailable, match="terminat"):
            await applying
    assert len(await table(observer, "engine_commands")) == 1
    assert await table(observer, "engine_events") == []

    resumed = await Sink.connect(database_url, ENVIRONMENT)
    assert await resumed.read_progress() == progress
    await apply(resumed, update, after=progress)
    await resumed.close()
    assert (await balances(observer))[1] == (Decimal(2), 2)


async def test_a_lock_that_is_not_given_in_time_is_unavailable_not_a_dead_letter(
    database_url: str, observer: Any
) -> None:
    sink = await Sink.connect(database_url, ENVIRONMENT, limits=SHORT)
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_entry(balance_updates=[make_update(0, 1, "2")])
    async with held_balances(database_url):
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await apply(sink, update, after=progress)
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def test_a_cancelled_transaction_gives_the_connection_up(
    sink: Sink, database_url: str, observer: Any
) -> None:
    progress = await apply(sink, make_entry(balance_updates=[make_update(0, 1, "1")]))
    update = make_entry(balance_updates=[make_update(0, 1, "2")])
    async with held_balances(database_url):
        applying = asyncio.create_task(apply(sink, update, after=progress), name="applying")
        await until_blocked(observer)
        applying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await applying
        assert sink.closed


async def test_a_commit_whose_answer_is_lost_is_found_in_the_progress_row(
    database_url: str, observer: Any, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT)
        proxy.drop_after(b"COMMIT")
        with pytest.raises(DatabaseUnavailable):
            await apply(sink, make_full_entry())
    resumed = await connect_when_free(database_url)
    assert await resumed.read_progress() == Progress(
        wal_id=WAL, wal_offset=10, last_command_id=1, last_l2_seq=41
    )
    await resumed.close()
    await expect_rows(observer, commands=1, dead_letters=0, wal_offset=10)


async def connect_when_free(database_url: str) -> Sink:
    """Connect once the backend before has noticed that its client is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await Sink.connect(database_url, ENVIRONMENT)
            except DatabaseUnavailable:
                continue


async def test_a_server_that_falls_silent_ends_in_an_error_within_the_limits(
    database_url: str, tmp_path: Path
) -> None:
    async with PostgresProxy(database_url, tmp_path) as proxy:
        sink = await Sink.connect(proxy.url, ENVIRONMENT, limits=SHORT)
        progress = await apply(sink, make_entry())
        proxy.fall_silent()
        async with asyncio.timeout(5):
            with pytest.raises(DatabaseUnavailable, match="timed out"):
                await apply(sink, make_entry(), after=progress)
            with pytest.raises(DatabaseUnavailable, match=r"connecting to Postgres: .*timed out"):
                await Sink.connect(proxy.url, ENVIRONMENT, limits=SHORT)
            await sink.close()


async def test_adopting_goes_on_behind_the_newest_command(sink: Sink, observer: Any) -> None:
    poison = make_entry(events=[make_event("\0")])
    progress = await apply(sink, make_entry(events=[make_event(l2_sequence=6)]), poison)
    adopted = await sink.adopt("wal-2")
    assert adopted == Progress(
        wal_id="wal-2", wal_offset=0, last_command_id=2, last_l2_seq=6, dead_letters=1
    )
    assert adopted == await sink.read_progress()
    after = await apply(sink, make_entry(), after=adopted)
    assert (after.wal_offset, after.last_command_id) == (10, 3)
    assert await sink.adopt("wal-2") == after
    with pytest.raises(ReplicationRefused, match="of wal-2"):
        await apply(sink, make_entry(), after=progress)


async def test_adopting_without_a_progress_row_looks_at_the_rows(sink: Sink, observer: Any) -> None:
    await apply(sink, make_full_entry(), make_entry(), make_entry(events=[make_event("\0")]))
    await observer.execute("DELETE FROM replication_progress")
    assert await sink.adopt("wal-2") == Progress(
        wal_id="wal-2", wal_offset=0, last_command_id=3, last_l2_seq=41, dead_letters=1
    )


async def test_adopting_an_unused_environment_begins_at_the_beginning(sink: Sink) -> None:
    assert await sink.adopt(WAL) == Progress(wal_id=WAL)
