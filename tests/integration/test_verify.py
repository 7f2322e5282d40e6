"""`journal verify` on logs, databases and services that it gets to see as they are."""

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.chain.authority import address_of
from app.chain.position import Position
from app.cli import main
from app.model.entry import Entry, Hash32
from app.replication.postgres import Sink
from app.replication.rows import Progress
from app.wal.record import Batch
from tests.support.journal_entries import make_entry, make_event, make_full_entry
from tests.support.postgres_cluster import Cluster, database_name
from tests.support.signed_chain import COLD_ADDRESS, COLD_KEY, SignedChain, blocks_of, write_wal

ENVIRONMENT = "development"
COLD = f"0x{COLD_ADDRESS.hex()}"
TWICE = UUID(int=77)


def tick(**fields: Any) -> Entry:
    return make_entry(
        **{"command_type": "TickSnapshot", "received_ts_ms": 2_000, "events": [make_event()]}
        | fields
    )


def some_batches() -> list[Batch]:
    """Every kind of entry; the last block but one is one command, told apart by hand below."""
    chain = SignedChain()
    batches = [
        chain.signed(make_full_entry(received_ts_ms=2_000), make_entry(), tick()),
        chain.signed(make_entry()),
        chain.signed(tick(request_uuid=TWICE), tick(events=[])),
        # A dead letter, and one that Postgres has an earlier entry of.
        chain.signed(tick(events=[make_event("a\0b")]), tick(request_uuid=TWICE), tick()),
    ]
    chain.rotate()
    return [
        *batches,
        chain.signed(tick(command_identity_hash=Hash32(bytes(32))), tick()),
        chain.signed(tick(events=[make_event(event_key="k", l2_sequence=5), make_event("u")])),
        chain.signed(tick()),
    ]


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    return some_batches()


@pytest.fixture(scope="module")
def filled_url(cluster: Cluster, batches: list[Batch]) -> Any:
    """A database that the batches were replicated into, to be copied by each test."""
    url = cluster.create_migrated()

    async def fill() -> None:
        sink = await Sink.connect(url, ENVIRONMENT)
        await sink.apply(batches, 1000, Progress(wal_id="log-1"))
        await sink.close()

    asyncio.run(fill())
    yield url
    cluster.drop(url)


@pytest.fixture
def url(cluster: Cluster, filled_url: str) -> Any:
    """A database of the test's own, with all the blocks."""
    copied = cluster.create(database_name(filled_url))
    yield copied
    cluster.drop(copied)


def change(url: str, statement: str) -> None:
    """Run a statement as somebody who may do anything, constraints between tables included."""

    async def run() -> str:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SET session_replication_role = replica")
            return str(await connection.execute(statement))
        finally:
            await connection.close()

    assert not asyncio.run(run()).endswith(" 0"), "nothing was changed"


def verify(source: object, *options: object, cold: str | None = COLD) -> Result:
    arguments = ["verify", source, *options, *(["--cold-address", cold] if cold else [])]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def report(source: object, *options: object, **more: Any) -> dict[str, Any]:
    result = verify(source, *options, "--json", **more)
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["status"] == result.exit_code, result.output
    return found


# -- databases ----------------------------------------------------------------------------------


def test_a_database_verifies_with_dead_letters_and_repeated_entries(
    url: str, batches: list[Batch]
) -> None:
    found = report(url)
    assert found["status"] == 0, found
    blocks = blocks_of(batches)
    assert found["checked"]["blocks"] == len(blocks)
    assert found["checked"]["commands"] == sum(len(block.commands) for block in blocks)
    assert found["checked"]["delegations"] == 2
    assert found["checked"]["engine_hashed"] == 1
    assert found["height"] == len(blocks) - 1


BIT = "set_byte({0}, 0, get_byte({0}, 0) # 1)"
ROOTS = ("state_root", "risk_root", "command_root", "obligation_root", "intent_root")


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        *(
            ("rsm_blocks", name, BIT)
            for name in (
                "block_hash", "prev_block_hash", "commands_hash", "batch_root", "signer",
                "signature",
            )
        ),
        *(
            ("rsm_blocks", name, "{0} + 1")
            for name in (
                "command_count", "first_seq", "timestamp", "first_command_id", "last_command_id",
            )
        ),
        *(("rsm_roots", name, BIT) for name in ROOTS),
        ("rsm_block_commands", "command_identity_hash", BIT),
        ("rsm_block_commands", "leaf_index", "{0} + 100"),
        ("rsm_block_commands", "command_id", "{0} + 100"),
        ("rsm_block_commands", "request_uuid", "gen_random_uuid()"),
    ],
)  # fmt: skip
def test_a_change_in_a_row_of_a_block_is_found(
    url: str, table: str, column: str, value: str
) -> None:
    change(
        url,
        f"UPDATE {table} SET {column} = {value.format(column)} WHERE (batch_seq, ctid) ="
        f" (SELECT batch_seq, max(ctid) FROM {table} WHERE batch_seq = 2 GROUP BY 1)",
    )
    found = report(url)
    assert (found["status"], found["fault"]["height"]) == (1, 2)


LAST = "command_id = (SELECT max(command_id) FROM engine_commands)"


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE engine_commands SET command_data = {BIT.format('command_data')} WHERE {LAST}",
        f"UPDATE engine_commands SET request_uuid = gen_random_uuid() WHERE {LAST}",
        f"UPDATE engine_commands SET command_identity_hash = '\\x{'07' * 32}' WHERE {LAST}",
        f"UPDATE engine_events SET event_topic = 'x' WHERE {LAST}",
        f"UPDATE engine_events SET event_key = 'x' WHERE {LAST}",
        f"UPDATE engine_events SET event_data = {BIT.format('event_data')} WHERE {LAST}",
        f"UPDATE engine_events SET l2_sequence = 1 WHERE {LAST}",
        f"UPDATE engine_events SET event_type = 'x' WHERE {LAST}",
        f"DELETE FROM engine_events WHERE {LAST}",
        f"DELETE FROM engine_commands WHERE {LAST}",
        "DELETE FROM rsm_blocks WHERE batch_seq = 5",
        "DELETE FROM rsm_current_state",
        "UPDATE rsm_current_state SET batch_seq = 4",
        *(
            f"UPDATE rsm_current_state SET {name} = {BIT.format(name)}"
            for name in ("block_hash", "batch_root", "state_root")
        ),
        "DELETE FROM rsm_roots WHERE batch_seq = 5",
        "DELETE FROM rsm_block_commands WHERE batch_seq = 5",
    ],
)
def test_a_change_of_an_entry_and_a_missing_row_are_found(url: str, statement: str) -> None:
    change(url, statement)
    found = report(url)
    assert (found["status"], found["fault"]["height"]) == (1, 5)


def test_events_out_of_order_are_found(url: str) -> None:
    change(url, "UPDATE engine_events SET event_idx = 9 WHERE event_key = 'k' AND event_idx = 0")
    found = report(url)
    assert (found["status"], found["fault"]["field"]) == (1, "obligation_root")


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE dead_letters SET entry = {BIT.format('entry').replace(', 0', ', 20')}",
        "DELETE FROM dead_letters",
        "UPDATE rsm_block_commands SET entry = NULL WHERE entry IS NOT NULL",
    ],
)
def test_a_change_of_an_entry_that_is_kept_whole_is_found(url: str, statement: str) -> None:
    change(url, statement)
    found = report(url)
    assert (found["status"], found["fault"]["height"]) == (1, 2)


@pytest.mark.parametrize("column", ["delegator", "delegate", "signature", "valid_from"])
def test_a_change_of_a_delegation_is_found(url: str, column: str) -> None:
    value = f"{column} + 1" if column == "valid_from" else BIT.format(column)
    change(url, f"UPDATE signing_authorities SET {column} = {value} WHERE batch_seq > 0")
    assert report(url)["status"] == 1


def test_a_missing_delegation_is_found(url: str) -> None:
    change(url, "DELETE FROM signing_authorities WHERE batch_seq > 0")
    fault = report(url)["fault"]
    assert (fault["height"], fault["field"]) == (3, "signer")


def test_what_can_not_be_asked_is_no_fault(url: str, empty_database_url: str) -> None:
    for options in (
        (url, "--environment", "other"),
        (empty_database_url,),
        ("postgresql:///none?host=/nowhere",),
    ):
        found = report(*options)
        assert (found["status"], found["fault"]) == (2, None)
        assert found["error"]


# -- the command --------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path: Path, batches: list[Batch]) -> Path:
    write_wal(tmp_path / "data" / "wal", batches[:4], batches[4:])
    return tmp_path / "data"


def test_what_is_right_is_told_with_exit_code_0(log: Path) -> None:
    result = verify(log)
    assert result.exit_code == 0, result.output
    assert "verified up to block 5, 0x" in result.stdout
    assert "the data of 1 commands is not covered" in result.stdout
    assert result.stderr == ""


def test_a_fault_is_one_line_with_height_and_difference_and_exit_code_1(log: Path) -> None:
    result = verify(log, cold=f"0x{'99' * 20}")
    assert result.exit_code == 1
    assert result.stderr.startswith("journal: block 0: delegation to 0x")
    assert result.stderr.count("\n") == 1
    assert COLD in result.stderr


def test_engine_hashed_commands_can_be_refused(log: Path) -> None:
    found = report(log, "--service-hashed")
    assert (found["status"], found["fault"]["height"]) == (1, 0)


def test_strict_is_about_the_time_of_blocks(log: Path, tmp_path: Path) -> None:
    assert report(log, "--strict")["status"] == 0
    write_wal(tmp_path / "old", [SignedChain().signed(tick(received_ts_ms=1))])
    assert report(tmp_path / "old")["status"] == 0
    assert report(tmp_path / "old", "--strict")["status"] == 1


def test_unsigned_blocks_are_a_fault_unless_allowed(tmp_path: Path) -> None:
    chain = SignedChain()
    write_wal(tmp_path, [chain.signed(tick()), chain.unsigned(tick())])
    assert report(tmp_path)["fault"]["height"] == 1
    found = report(tmp_path, "--allow-unsigned")
    assert found["status"] == 0
    assert found["warnings"] == ["the blocks after 0 are not signed: nobody vouches for them"]
    assert report(tmp_path, "--allow-unsigned", cold=None)["warnings"]
    assert report(tmp_path, cold=None)["status"] == 2


def test_a_run_goes_on_where_another_ended(log: Path, url: str, tmp_path: Path) -> None:
    """Across sources: what one showed holds for the other."""
    saved = tmp_path / "position.json"
    write_wal(tmp_path / "short", some_batches()[:1])
    assert report(url, "--save", saved)["status"] == 0
    found = report(log, "--resume", saved)
    assert (found["status"], found["checked"]["blocks"]) == (0, 0)
    found = report(tmp_path / "short", "--resume", saved)
    assert found["status"] == 2
    saved.write_text("{}x")
    assert report(log, "--resume", saved)["status"] == 2


def test_a_part_is_verified_behind_a_trusted_hash(log: Path, batches: list[Batch]) -> None:
    blocks = blocks_of(batches)
    trusted = f"0x{blocks[3].header.prev_block_hash.hex()}"
    found = report(log, "--from-height", 3, "--trusted-hash", trusted)
    assert (found["status"], found["checked"]["blocks"]) == (0, 3)
    assert "events were not checked" in found["warnings"][0]
    wrong = report(log, "--from-height", 3, "--trusted-hash", f"0x{'01' * 32}")
    assert (wrong["status"], wrong["fault"]["height"]) == (1, 2)
    assert report(log, "--from-height", 3)["status"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["http://127.0.0.1:1"],
        [".", "--cold-address", "0x12"],
        [".", "--trusted-hash", "zz"],
        [".", "--from-height", "0"],
    ],
)
def test_what_can_not_be_checked_is_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    result = verify(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr


def test_several_cold_addresses_may_be_expected(log: Path) -> None:
    assert report(log, "--cold-address", f"0x{'99' * 20}")["status"] == 0


def test_the_cold_address_is_the_one_of_the_key() -> None:
    assert address_of(COLD_KEY.public_key) == COLD_ADDRESS
    assert Position().delegations == []
