import subprocess
import sys
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")


from app.chain.header import Delegation
from app.chain.position import Log, beginning
from app.chain.verify import Block, ChainCheck, Command, Terms
from app.model.entry import Event, Hash32
from tests.support.signed_chain import SignedChain, block_of, blocks_of
from tests.unit.chain import reference
from tests.unit.chain.audited import (
    BLOCKS,
    ENGINE_HASHED_AT,
    TERMS,
    chain,
    change_command,
    events,
    fault_of,
    flipped,
    put,
    tick,
    verify,
    with_events,
)
from tests.unit.chain.vectors import entry_of, from_hex, header_of, roots_of, vectors

# Of one field in one block: there are well over a hundred of these.
few = settings(max_examples=20)

PRODUCING = {
    *(f"app.chain.{name}" for name in ("pipeline", "sparse", "store", "rocks", "signer")),
    *("app.wal.writer", "app.wal.log", "app.replication.postgres", "app.service"),
}


def test_the_worked_examples_verify() -> None:
    delegation = vectors()["delegation"]
    check = ChainCheck(
        Terms(frozenset({from_hex(delegation["delegator"])}), strict=True), beginning()
    )
    check.add_delegation(
        Delegation(
            delegator=from_hex(delegation["delegator"]),
            delegate=from_hex(delegation["delegate"]),
            valid_from=delegation["valid_from"],
            valid_until=delegation["valid_until"],
            signature=from_hex(delegation["signature"]),
        )
    )
    command_id = 0
    for example in vectors()["blocks"]:
        commands = []
        for entry in map(entry_of, example["commands"]):
            command_id += 1
            commands.append(
                Command(
                    command_id=command_id,
                    request_uuid=entry.request_uuid.bytes,
                    command_data=entry.command_data,
                    events=entry.events,
                )
            )
        block = example["block"]
        check.add(
            Block(
                header=header_of(block),
                roots=roots_of(block),
                commands=commands,
                stated_hash=from_hex(block["block_hash"]),
            )
        )
    assert check.tally.blocks == check.position.height == len(vectors()["blocks"])


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), min_size=1, max_size=20))
def test_any_chain_that_the_service_makes_verifies(batches: list[list[int]]) -> None:
    making = SignedChain()
    made = blocks_of(making.signed(*(tick(events=events(n)) for n in batch)) for batch in batches)
    tally = verify(made)
    assert (tally.blocks, tally.events) == (len(batches), sum(map(sum, batches)))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=70))
def test_a_log_of_peaks_has_the_root_over_all_its_leaves(leaves: list[bytes]) -> None:
    log = Log()
    for leaf in leaves:
        log.append(leaf)
    assert (log.size, log.root) == (len(leaves), reference.log_root(leaves))
    assert len(log.peaks) == len(leaves).bit_count()


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize(
    "field", ["prev_block_hash", "commands_hash", "batch_root", "signer", "signature"]
)
@few
@given(bit=st.integers(0))
def test_a_flipped_bit_in_a_header_is_found(height: int, field: str, bit: int) -> None:
    block = chain()[height]
    value = getattr(block.header, field)
    if not value:
        value = bytes(65)
    header = replace(block.header, **{field: flipped(value, bit)})
    assert fault_of(put(height, replace(block, header=header))).height == height


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize("field", ["batch_seq", "command_count", "first_seq", "timestamp"])
@few
@given(bit=st.integers(0, 62))
def test_another_number_in_a_header_is_found(height: int, field: str, bit: int) -> None:
    block = chain()[height]
    value = getattr(block.header, field) ^ 1 << bit
    fault = fault_of(put(height, replace(block, header=replace(block.header, **{field: value}))))
    assert fault.height == height
    assert fault.field in {field, "signature"}


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize(
    "field", ["state_root", "risk_root", "command_root", "obligation_root", "intent_root"]
)
@few
@given(bit=st.integers(0))
def test_a_flipped_bit_in_a_root_is_found_and_named(height: int, field: str, bit: int) -> None:
    block = chain()[height]
    found = flipped(getattr(block.roots, field), bit)
    changed = replace(block, roots=replace(block.roots, **{field: found}))
    fault = fault_of(put(height, changed))
    assert (fault.height, fault.field, fault.found) == (height, field, f"0x{found.hex()}")
    assert fault.expected == f"0x{getattr(block.roots, field).hex()}"


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize("field", ["request_uuid", "command_data"])
@few
@given(number=st.integers(0), bit=st.integers(0))
def test_a_flipped_bit_in_a_command_is_found(
    height: int, field: str, number: int, bit: int
) -> None:
    block = chain()[height]
    number %= len(block.commands) - 2 * (height == ENGINE_HASHED_AT)
    value = flipped(getattr(block.commands[number], field), bit)
    fault = fault_of(put(height, change_command(block, number, **{field: value})))
    assert (fault.height, fault.field) == (height, "commands_hash")


def test_the_data_of_an_engine_hashed_command_is_not_covered_its_hash_and_events_are() -> None:
    block = chain()[ENGINE_HASHED_AT]
    number = len(block.commands) - 2
    command = block.commands[number]
    assert any(command.sent_identity or b"")
    allowing = TERMS._replace(allow_unsigned=True)
    unseen = change_command(block, number, command_data=b"anything", request_uuid=bytes(16))
    assert verify(put(ENGINE_HASHED_AT, unseen), allowing).engine_hashed == 1
    for seen in (
        change_command(block, number, sent_identity=b"\x08" * 32),
        change_command(block, number, sent_identity=None),
        change_command(block, number, events=[]),
    ):
        assert fault_of(put(ENGINE_HASHED_AT, seen)).height == ENGINE_HASHED_AT
    refusing = allowing._replace(service_hashed=True)
    fault = fault_of(chain(), refusing)
    assert (fault.height, fault.found) == (ENGINE_HASHED_AT, f"0x{'07' * 32}")


def test_an_identity_hash_that_the_engine_sent_as_it_is_derived_covers_the_data() -> None:
    entry = tick()
    derived = reference.identity(entry.request_uuid.bytes, entry.command_data)
    entry.command_identity_hash = Hash32(derived)
    blocks = blocks_of([SignedChain().signed(entry)])
    assert verify(blocks, TERMS._replace(service_hashed=True)).engine_hashed == 0


@pytest.mark.parametrize(
    "change",
    [
        {"event_topic": "fills2"},
        {"event_key": None},
        {"event_key": "l"},
        {"event_data": b"\x01\x91"},
        {"event_data": b""},
        {"l2_sequence": None},
        {"l2_sequence": 2},
        {"event_type": "filled"},
    ],
)
@pytest.mark.parametrize("height", [h for h in range(BLOCKS) if h % 3])
def test_a_change_in_an_event_is_found(height: int, change: dict[str, Any]) -> None:
    block = chain()[height]
    changed = list(block.commands[1].events)
    changed[-1] = replace(changed[-1], **change)
    fault = fault_of(put(height, change_command(block, 1, events=changed)))
    assert (fault.height, fault.field) == (height, "obligation_root")


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[1:],
        lambda found: found[:-1],
        lambda found: [*found, found[-1]],
        lambda found: found[::-1],
        lambda found: [],
    ],
)
def test_events_dropped_doubled_or_out_of_order_are_found(
    change: Callable[[list[Event]], list[Event]],
) -> None:
    fault = fault_of(put(2, with_events(chain()[2], 2, change)))
    assert (fault.height, fault.field) == (2, "obligation_root")


def test_an_event_moved_to_the_command_before_is_not_a_change_that_blocks_know_of() -> None:
    """The obligation log lists a batch's events in order, whichever command caused them."""
    block = chain()[2]
    moved = with_events(block, 1, lambda found: [*found, block.commands[2].events[0]])
    moved = with_events(moved, 2, lambda found: found[1:])
    assert verify(put(2, moved), TERMS._replace(allow_unsigned=True)).blocks == BLOCKS


@pytest.mark.parametrize("height", range(BLOCKS))
def test_a_block_that_is_missing_doubled_or_out_of_order_is_found(height: int) -> None:
    blocks = list(chain())
    doubled = [*blocks[: height + 1], *blocks[height:]]
    fault = fault_of(doubled)
    assert (fault.height, fault.field, fault.found) == (height + 1, "batch_seq", str(height))
    if height < BLOCKS - 1:
        missing = fault_of(blocks[:height] + blocks[height + 1 :])
        swapped = fault_of(
            [*blocks[:height], blocks[height + 1], blocks[height], *blocks[height + 2 :]]
        )
        for fault in (missing, swapped):
            assert (fault.height, fault.field, fault.found) == (
                height,
                "batch_seq",
                str(height + 1),
            )


@pytest.mark.parametrize("height", range(BLOCKS))
def test_a_command_that_is_missing_doubled_or_out_of_order_is_found(height: int) -> None:
    block = chain()[height]
    commands = block.commands
    changes = [commands[1:], commands[:-1], [*commands, commands[-1]], [commands[0], *commands]]
    if len(commands) > 1:
        changes.append([commands[1], commands[0], *commands[2:]])
        ids = {"command_id": commands[0].command_id, "leaf_index": commands[0].leaf_index}
        others = {"command_id": commands[1].command_id, "leaf_index": commands[1].leaf_index}
        # In the order of their ids, and yet not in theirs.
        changes.append([replace(commands[1], **ids), replace(commands[0], **others), *commands[2:]])
    for change in changes:
        assert fault_of(put(height, replace(block, commands=change))).height == height


@pytest.mark.parametrize(
    "fields",
    [
        {"stated_hash": b"\x01" * 32},
        {"first_command_id": 77},
        {"last_command_id": 77},
        {"entries_timestamp": 5},
    ],
)
def test_what_a_source_says_beside_the_header_must_fit(fields: dict[str, Any]) -> None:
    (field,) = fields
    fault = fault_of(put(4, replace(chain()[4], **fields)))
    names = {"stated_hash": "block_hash", "entries_timestamp": "timestamp"}
    assert (fault.height, fault.field) == (4, names.get(field, field))


@pytest.mark.parametrize(
    "fields",
    [
        {"stated_identity": b"\x01" * 32},
        {"leaf_index": 77},
        {"command_id": 1},
        {"command_id": chain()[4].commands[0].command_id},
    ],
)
def test_what_a_source_says_beside_a_command_must_fit(fields: dict[str, Any]) -> None:
    (field,) = fields
    fault = fault_of(put(4, change_command(chain()[4], 1, **fields)))
    name = "command_identity_hash" if field == "stated_identity" else field
    assert fault.height == 4
    assert fault.field.endswith(name)


def test_command_ids_go_up_from_block_to_block() -> None:
    block = chain()[4]
    low = [replace(c, command_id=n + 1) for n, c in enumerate(block.commands)]
    changed = replace(block, commands=low, first_command_id=1, last_command_id=len(block.commands))
    assert fault_of(put(4, changed)).field == "command 0: command_id"


@pytest.mark.parametrize("module", ["app.chain.verify", "app.verify.run", "app.verify.database"])
def test_nothing_that_makes_blocks_is_loaded_to_verify_them(module: str) -> None:
    program = f"import sys, {module}; print(*(n for n in sys.modules if n.startswith('app.')))"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(found.stdout.split())
    assert module in loaded
    assert not loaded & PRODUCING


def test_the_same_entries_twice_are_two_commands() -> None:
    entry = tick(request_uuid=UUID(int=1))
    making = SignedChain()
    blocks = [block_of(making.signed(entry, replace(entry, request_uuid=uuid4()), entry))]
    assert verify(blocks).commands == 3


def test_a_block_without_commands_is_found_although_its_header_says_so() -> None:
    block = chain()[4]
    empty = replace(block, commands=[], header=replace(block.header, command_count=0))
    assert fault_of(put(4, empty)).field == "commands"
