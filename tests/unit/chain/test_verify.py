from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from coincurve import PrivateKey

from app.chain.authority import address_of, delegate
from app.chain.hashing import ZERO32
from app.chain.header import NO_SIGNER, Delegation, block_hash
from app.chain.position import Log, Position, beginning
from app.chain.verify import Block, ChainCheck, Command, Fault, Tally, Terms
from app.model.entry import Entry, Event, Hash32
from tests.support.journal_entries import make_entry, make_event
from tests.support.signed_chain import COLD_ADDRESS, COLD_KEY, SignedChain, block_of, blocks_of
from tests.unit.chain import reference
from tests.unit.chain.vectors import entry_of, from_hex, header_of, roots_of, vectors

TERMS = Terms(frozenset({COLD_ADDRESS}))
OTHER_KEY = PrivateKey(b"\x02" * 32)
ROTATED_AT, UNSIGNED_AT, ENGINE_HASHED_AT, BLOCKS = 3, 5, 2, 8


def tick(time_ms: int = 2_000, **fields: Any) -> Entry:
    return make_entry(command_type="TickSnapshot", received_ts_ms=time_ms, **fields)


def other(time_ms: int = 2_000) -> Entry:
    """An entry that no block covers."""
    return make_entry(command_type="NewOrder", received_ts_ms=time_ms)


@cache
def chain() -> tuple[Block, ...]:
    """Signed blocks, one unsigned, of two hot keys; batches of blocks alone and of others too."""
    making = SignedChain()
    batches = []
    for height in range(BLOCKS):
        if height == ROTATED_AT:
            making.rotate(valid_from=1_500)
        entries = [other(), *(tick(events=events(n)) for n in range(height % 3 + 1)), other(2_100)]
        if height == ENGINE_HASHED_AT:
            entries.append(tick(command_identity_hash=Hash32(b"\x07" * 32), events=events(2)))
            entries.append(tick(command_identity_hash=Hash32(ZERO32)))
        make = making.unsigned if height == UNSIGNED_AT else making.signed
        batches += [make(*entries), making.signed(other(), other())]
    return tuple(blocks_of(batches))


def events(count: int) -> list[Event]:
    return [make_event(event_key="k", l2_sequence=number) for number in range(count)]


def verify(blocks: Iterable[Block], terms: Terms = TERMS, start: Position | None = None) -> Tally:
    check = ChainCheck(terms, start or beginning())
    for block in blocks:
        check.add(block)
    return check.tally


def fault_of(blocks: Iterable[Block], terms: Terms | None = None) -> Fault:
    with pytest.raises(Fault) as caught:
        verify(blocks, terms or TERMS._replace(allow_unsigned=True))
    return caught.value


def put(height: int, block: Block) -> list[Block]:
    return [*chain()[:height], block, *chain()[height + 1 :]]


def flipped(value: bytes, bit: int) -> bytes:
    bit %= 8 * len(value)
    changed = bytearray(value)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


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


def test_a_chain_with_rotation_and_unsigned_blocks_verifies() -> None:
    blocks = chain()
    tally = verify(blocks, TERMS._replace(allow_unsigned=True))
    commands = [command for block in blocks for command in block.commands]
    assert tally == Tally(
        blocks=BLOCKS,
        commands=len(commands),
        engine_hashed=1,
        events=sum(len(command.events) for command in commands),
        unsigned=1,
        newest_signed=BLOCKS - 1,
        delegations=2,
    )


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


def test_an_unsigned_block_is_a_fault_unless_it_is_allowed() -> None:
    fault = fault_of(chain(), TERMS)
    assert (fault.height, fault.field) == (UNSIGNED_AT, "signature")
    assert str(fault).startswith(f"block {UNSIGNED_AT}: signature: expected")


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize(
    "field", ["prev_block_hash", "commands_hash", "batch_root", "signer", "signature"]
)
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
@given(bit=st.integers(0))
def test_a_flipped_bit_in_a_root_is_found_and_named(height: int, field: str, bit: int) -> None:
    block = chain()[height]
    found = flipped(getattr(block.roots, field), bit)
    changed = replace(block, roots=replace(block.roots, **{field: found}))
    fault = fault_of(put(height, changed))
    assert (fault.height, fault.field, fault.found) == (height, field, f"0x{found.hex()}")
    assert fault.expected == f"0x{getattr(block.roots, field).hex()}"


@pytest.mark.parametrize("height", [0, ROTATED_AT])
@pytest.mark.parametrize("field", ["delegator", "delegate", "signature"])
@given(bit=st.integers(0))
def test_a_flipped_bit_in_a_delegation_is_found(height: int, field: str, bit: int) -> None:
    block = chain()[height]
    assert block.authority is not None
    value = flipped(getattr(block.authority, field), bit)
    authority = replace(block.authority, **{field: value})
    assert fault_of(put(height, replace(block, authority=authority))).height == height


@pytest.mark.parametrize("field", ["valid_from", "valid_until"])
@given(bit=st.integers(0, 62))
def test_another_time_in_a_delegation_is_found(field: str, bit: int) -> None:
    block = chain()[0]
    assert block.authority is not None
    value = getattr(block.authority, field) ^ 1 << bit
    authority = replace(block.authority, **{field: value})
    assert fault_of(put(0, replace(block, authority=authority))).height == 0


def change_command(block: Block, number: int, **fields: Any) -> Block:
    commands = list(block.commands)
    commands[number] = replace(commands[number], **fields)
    return replace(block, commands=commands)


@pytest.mark.parametrize("height", range(BLOCKS))
@pytest.mark.parametrize("field", ["request_uuid", "command_data"])
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


def with_events(block: Block, number: int, change: Callable[[list[Event]], list[Event]]) -> Block:
    return change_command(block, number, events=change(list(block.commands[number].events)))


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
    "fields", [{"stated_identity": b"\x01" * 32}, {"leaf_index": 77}, {"command_id": 1}]
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


def test_another_cold_address_is_told() -> None:
    fault = fault_of(chain(), Terms(frozenset({b"\x99" * 20})))
    assert fault.height == 0
    assert fault.field.endswith("delegator")
    assert (fault.expected, fault.found) == (f"0x{'99' * 20}", f"0x{COLD_ADDRESS.hex()}")


def test_each_of_several_cold_addresses_may_delegate() -> None:
    other_address = address_of(OTHER_KEY.public_key)
    both = Terms(frozenset({COLD_ADDRESS, other_address}))
    assert verify(blocks_of([SignedChain(OTHER_KEY).signed(tick())]), both).blocks == 1
    assert verify(chain()[:UNSIGNED_AT], both).blocks == UNSIGNED_AT


def test_a_delegation_by_another_key_in_the_cold_ones_name_is_found() -> None:
    block = chain()[0]
    forged = delegate(OTHER_KEY, block.header.signer, 1_000, 9_000)
    forged = replace(forged, delegator=COLD_ADDRESS)
    fault = fault_of(put(0, replace(block, authority=forged)))
    assert fault.height == 0
    assert fault.field.endswith("signature")


def test_a_chain_signed_by_a_key_without_a_delegation_is_found() -> None:
    blocks = blocks_of(SignedChain().signed(tick()) for _ in range(1))
    fault = fault_of([replace(blocks[0], authority=None)])
    assert (fault.height, fault.field) == (0, "signer")


def test_a_chain_made_anew_by_somebody_else_is_found() -> None:
    fault = fault_of(blocks_of([SignedChain(OTHER_KEY).signed(tick())]))
    assert fault.height == 0


def test_a_delegation_for_another_key_than_the_blocks_signer_is_found() -> None:
    block = chain()[ROTATED_AT]
    fault = fault_of(put(ROTATED_AT, replace(block, authority=chain()[0].authority)))
    assert (fault.height, fault.field) == (ROTATED_AT, "authority")


def test_a_block_stripped_of_its_signature_is_found_although_unsigned_ones_are_allowed() -> None:
    block = chain()[BLOCKS - 1]
    for header in (
        replace(block.header, signature=b""),
        replace(block.header, signer=NO_SIGNER),
    ):
        assert fault_of(put(BLOCKS - 1, replace(block, header=header))).field == "signature"


@pytest.mark.parametrize(("valid_from", "valid_until"), [(9_000, 9_000), (9_001, 9_000)])
def test_a_window_that_is_none_is_a_fault(valid_from: int, valid_until: int) -> None:
    check = ChainCheck(TERMS, beginning())
    with pytest.raises(Fault, match="valid_until"):
        check.add_delegation(delegate(COLD_KEY, b"\x05" * 20, valid_from, valid_until))


def test_a_delegation_to_nobody_is_a_fault() -> None:
    with pytest.raises(Fault, match="delegate"):
        ChainCheck(TERMS, beginning()).add_delegation(delegate(COLD_KEY, NO_SIGNER, 1, 2))


@pytest.mark.parametrize(
    ("time_ms", "right"), [(1_000, True), (999, False), (9_000, True), (9_001, False)]
)
def test_strict_asks_that_the_delegation_covers_the_timestamp(time_ms: int, right: bool) -> None:
    blocks = blocks_of([SignedChain().signed(tick(time_ms))])
    assert verify(blocks).blocks == 1
    strict = TERMS._replace(strict=True)
    if right:
        assert verify(blocks, strict).blocks == 1
    else:
        assert fault_of(blocks, strict).field == "timestamp"


def test_without_a_cold_address_signatures_are_checked_all_the_same() -> None:
    anyone = Terms(frozenset(), allow_unsigned=True)
    assert verify(chain(), anyone).blocks == BLOCKS
    block = chain()[4]
    header = replace(block.header, signature=flipped(block.header.signature, 3))
    assert fault_of(put(4, replace(block, header=header)), anyone).field == "signature"


def test_a_check_goes_on_from_a_position_with_everything_checked() -> None:
    allowing = TERMS._replace(allow_unsigned=True)
    first = ChainCheck(allowing, beginning())
    for block in chain()[:4]:
        first.add(block)
    position = first.position
    assert verify(chain()[4:], allowing, position).blocks == BLOCKS - 4
    assert position.height == BLOCKS
    assert position.block_hash == block_hash(chain()[-1].header)


def test_behind_a_trusted_hash_alone_events_are_not_checked_and_all_else_is() -> None:
    def start() -> Position:
        return Position(
            height=4,
            block_hash=block_hash(chain()[3].header),
            delegations=[each.authority for each in chain() if each.authority],
        )

    allowing = TERMS._replace(allow_unsigned=True)
    rest = list(chain()[4:])
    tally = verify(rest, allowing, start())
    assert (tally.blocks, tally.events) == (BLOCKS - 4, 0)
    unseen = with_events(rest[0], 1, lambda found: [])
    assert verify([unseen, *rest[1:]], allowing, start()).blocks == BLOCKS - 4
    for seen in (
        change_command(rest[0], 1, command_data=b"x"),
        replace(rest[0], roots=replace(rest[0].roots, obligation_root=ZERO32)),
        replace(rest[0], roots=replace(rest[0].roots, intent_root=ZERO32)),
        replace(rest[0], roots=replace(rest[0].roots, state_root=ZERO32)),
    ):
        with pytest.raises(Fault) as caught:
            verify([seen, *rest[1:]], allowing, start())
        assert caught.value.height == 4
    wrong = start()
    wrong.block_hash = b"\x01" * 32
    with pytest.raises(Fault, match="block 4: prev_block_hash"):
        verify(rest, allowing, wrong)


def test_a_trusted_block_is_known_by_its_hash() -> None:
    start = Position(height=4, block_hash=block_hash(chain()[3].header))
    ChainCheck(TERMS, start).confirm(chain()[3])
    assert start.commands == chain()[4].header.first_seq
    with pytest.raises(Fault, match="block 2: block_hash"):
        ChainCheck(TERMS, start).confirm(chain()[2])


def test_the_same_entries_twice_are_two_commands() -> None:
    entry = tick(request_uuid=UUID(int=1))
    making = SignedChain()
    blocks = [block_of(making.signed(entry, replace(entry, request_uuid=uuid4()), entry))]
    assert verify(blocks).commands == 3
