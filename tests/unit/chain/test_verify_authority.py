"""Who may have made the blocks, and from where on they are checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")


from app.chain.authority import address_of, delegate
from app.chain.hashing import ZERO32
from app.chain.header import NO_SIGNER, block_hash
from app.chain.position import Position, beginning
from app.chain.verify import ChainCheck, Fault, Tally, Terms
from tests.support.signed_chain import COLD_ADDRESS, COLD_KEY, SignedChain, blocks_of
from tests.unit.chain.audited import (
    BLOCKS,
    OTHER_KEY,
    ROTATED_AT,
    TERMS,
    UNSIGNED_AT,
    chain,
    change_command,
    fault_of,
    flipped,
    put,
    tick,
    verify,
    with_events,
)


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


def test_an_unsigned_block_is_a_fault_unless_it_is_allowed() -> None:
    fault = fault_of(chain(), TERMS)
    assert (fault.height, fault.field) == (UNSIGNED_AT, "signature")
    assert str(fault).startswith(f"block {UNSIGNED_AT}: signature: expected")


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


def test_a_delegation_that_is_heard_of_twice_counts_once() -> None:
    check = ChainCheck(TERMS, beginning())
    authority = chain()[0].authority
    assert authority is not None
    for _ in range(2):
        check.add_delegation(authority)
    assert (check.tally.delegations, check.position.delegations) == (1, [authority])
    assert check.may_sign(authority.delegate)
    assert not check.may_sign(b"\x05" * 20)
    assert check.may_sign(NO_SIGNER)
