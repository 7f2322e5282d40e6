import asyncio
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgpack
import pytest
from crc32c import crc32c
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.chain.position import Position, beginning
from app.chain.verify import ChainCheck, Fault, Tally, Terms, Unverifiable
from app.errors import OperatingError
from app.model.entry import Entry, Hash32
from app.verify.audit import audit
from app.verify.wal import WalSource
from app.wal.checkpoint import Checkpoint, write_checkpoint
from app.wal.files import FileSystem
from app.wal.record import FRAME_BYTES, Batch
from app.wal.retention import give_back
from app.wal.segments import segment_name
from tests.support.journal_entries import make_batch, make_entry, make_event, make_full_entry
from tests.support.signed_chain import COLD_ADDRESS, GENESIS, SignedChain, blocks_of, write_wal

TERMS = Terms(frozenset({COLD_ADDRESS}))


def tick(**fields: Any) -> Entry:
    return make_entry(command_type="TickSnapshot", received_ts_ms=2_000, **fields)


def some_batches(count: int) -> list[Batch]:
    """Every third one is no block; the key is rotated on the way."""
    making = SignedChain()
    batches = []
    for number in range(count):
        if number == count // 2:
            making.rotate()
        entries = [make_entry(), tick(events=[make_event(), make_event("books")])]
        batches.append(making.signed(*(entries if number % 3 else [make_full_entry()]), tick()))
    return batches


async def tally_of(directory: Path, start: Position | None = None, terms: Terms = TERMS) -> Tally:
    check = ChainCheck(terms, start or beginning())
    await audit(WalSource(directory, FileSystem()), check, lambda block: None)
    return check.tally


def verify(directory: Path, start: Position | None = None, terms: Terms = TERMS) -> Tally:
    return asyncio.run(tally_of(directory, start, terms))


def fault_of(directory: Path) -> Fault:
    with pytest.raises(Fault) as caught:
        verify(directory)
    return caught.value


def test_a_log_of_several_segments_verifies(tmp_path: Path) -> None:
    batches = some_batches(12)
    write_wal(tmp_path / "wal", batches[:5], batches[5:6], batches[6:])
    blocks = blocks_of(batches)
    for directory in (tmp_path, tmp_path / "wal"):
        tally = verify(directory)
        assert (tally.blocks, tally.delegations) == (len(blocks), 2)
        assert tally.commands == sum(len(block.commands) for block in blocks)


def test_batches_that_are_no_blocks_are_passed_over(tmp_path: Path) -> None:
    making = SignedChain()
    write_wal(
        tmp_path,
        [making.signed(make_entry()), making.signed(tick()), making.signed(make_entry())],
        [making.signed(make_entry())],
    )
    assert verify(tmp_path).blocks == 1


# -- every byte ---------------------------------------------------------------------------------

# In one loop: to make one takes longer than to verify these few blocks.


def reframed(payload: bytes) -> bytes:
    """A record with the right length and CRC, whatever its payload."""
    return len(payload).to_bytes(4, "little") + crc32c(payload).to_bytes(4, "little") + payload


def covered(payload: bytes) -> Any:
    """What of a record blocks and delegations commit to, read with another MessagePack library."""
    record = msgpack.unpackb(payload)
    # Ids only have to go up: no hash covers them.
    del record["first_command_id"]
    commands = record.pop("commands")
    entries = [commands[index] for index in record["block_indices"]]
    header = record["header"]
    # Verifiers take both ways to write the y-parity.
    for signed in (header, record["authority"]):
        if signed is not None and signed["signature"]:
            signed["signature"] = signed["signature"][:-1] + bytes([signed["signature"][-1] % 27])
    return (
        record,
        # An identity hash that the engine sent covers what the engine hashed.
        [e.get("command_identity_hash") or (e["request_uuid"], e["command_data"]) for e in entries],
        [event for entry in entries for event in entry.get("events", [])],
        commands[-1]["received_ts_ms"],
    )


def small_chain() -> list[Batch]:
    making = SignedChain()
    event = make_event("t", event_key="k", l2_sequence=300, event_data=b"\x01\xf0")
    return [
        making.signed(tick(command_data=b"\x01\x02", events=[event, make_event("u")])),
        making.signed(make_entry(), tick(), tick(command_identity_hash=Hash32(b"\x07" * 32))),
        making.unsigned(tick(events=[event])),
        making.signed(tick()),
    ]


@pytest.mark.parametrize("height", range(4))
@pytest.mark.timeout(300)
async def test_no_byte_of_a_record_can_be_another_one_unseen(height: int, tmp_path: Path) -> None:
    """The record's CRC is made right again, as a forger would.

    Whatever still verifies must not differ in anything that blocks cover.
    """
    batches = small_chain()
    offsets = write_wal(tmp_path, batches)
    terms = TERMS._replace(allow_unsigned=True)
    assert (await tally_of(tmp_path, terms=terms)).blocks == 4
    path = tmp_path / segment_name(0)
    log = path.read_bytes()
    start, end = offsets[height], offsets[height + 1]
    payload = log[start + FRAME_BYTES : end]
    expected = covered(payload)
    with path.open("r+b", buffering=0) as segment:
        for place, way in product(range(len(payload)), ("zero", "low bit", "another bit")):
            changed = bytearray(payload)
            changed[place] ^= {"zero": payload[place], "low bit": 1}.get(way, 2 << place % 7)
            segment.seek(start)
            segment.write(reframed(bytes(changed)))
            try:
                await tally_of(tmp_path, terms=terms)
            except Fault as fault:
                # Ids that are too high are noticed in the next record alone.
                heights = {height, height + 1} if "given before" in fault.found else {height}
                assert fault.height in heights, (place, way, fault)  # noqa: PT017 - of many
            else:
                assert covered(bytes(changed)) == expected, (place, way)


async def test_without_the_right_crc_any_flipped_bit_is_found(tmp_path: Path) -> None:
    offsets = write_wal(tmp_path, small_chain()[:2])
    path = tmp_path / segment_name(0)
    log = path.read_bytes()
    for place in range(offsets[0], offsets[2]):
        changed = bytearray(log)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises((Fault, Unverifiable)) as caught:
            await tally_of(tmp_path)
        if isinstance(caught.value, Fault):
            assert caught.value.height == (place >= offsets[1])
            assert "offset" in caught.value.field
        else:
            # A length that points behind the end of the log, as a torn write leaves it.
            assert offsets[1] <= place < offsets[1] + 4


# -- what a log can look like -------------------------------------------------------------------


def test_a_key_that_comes_twice_in_a_map_is_a_fault(tmp_path: Path) -> None:
    offsets = write_wal(tmp_path, small_chain()[:1])
    path = tmp_path / segment_name(0)
    log = path.read_bytes()
    payload = log[offsets[0] + FRAME_BYTES :]
    doubled = bytes([payload[0] + 1]) + payload[1:] + msgpack.packb("header") + msgpack.packb(None)
    path.write_bytes(log[: offsets[0]] + reframed(doubled))
    assert "twice" in fault_of(tmp_path).found


@pytest.mark.parametrize("left_out", ["header", "roots", "block_indices"])
def test_a_block_that_is_not_whole_is_a_fault(left_out: str, tmp_path: Path) -> None:
    batches = small_chain()[:2]
    batches[1] = replace(batches[1], **{left_out: None})
    write_wal(tmp_path, batches)
    assert fault_of(tmp_path).height == 1


@pytest.mark.parametrize("indices", [[], [1, 1], [2, 1], [1, 3], [1]])
def test_indices_that_are_none_are_a_fault(indices: list[int], tmp_path: Path) -> None:
    batches = small_chain()[:2]
    batches[1] = replace(batches[1], block_indices=indices)
    write_wal(tmp_path, batches)
    assert fault_of(tmp_path).height == 1


def test_command_ids_given_twice_are_a_fault(tmp_path: Path) -> None:
    making = SignedChain()
    batches = [making.signed(tick()), replace(making.signed(make_entry()), first_command_id=1)]
    write_wal(tmp_path, batches)
    assert "given before" in fault_of(tmp_path).found


def test_a_missing_segment_is_a_fault(tmp_path: Path) -> None:
    batches = some_batches(6)
    write_wal(tmp_path, batches[:2], batches[2:4], batches[4:])
    middle = sorted(tmp_path.iterdir())[1]
    middle.unlink()
    assert fault_of(tmp_path).height == 2


def test_another_logs_segment_is_a_fault(tmp_path: Path) -> None:
    batches = some_batches(4)
    write_wal(tmp_path / "a", batches[:2], batches[2:])
    write_wal(tmp_path / "b", batches[:2], batches[2:], genesis=replace(GENESIS, wal_id="log-2"))
    second = sorted((tmp_path / "b").iterdir())[1]
    second.rename(tmp_path / "a" / second.name)
    assert "log-2" in fault_of(tmp_path / "a").found


def test_an_incomplete_last_record_can_not_be_checked_and_the_rest_is(tmp_path: Path) -> None:
    write_wal(tmp_path, some_batches(4))
    path = tmp_path / segment_name(0)
    path.write_bytes(path.read_bytes()[:-1])
    check = ChainCheck(TERMS, beginning())
    with pytest.raises(Unverifiable, match="last record of the log is incomplete"):
        asyncio.run(audit(WalSource(tmp_path, FileSystem()), check, lambda block: None))
    assert check.tally.blocks == 3


def test_a_record_that_is_just_being_written_is_read_once_it_is_there(tmp_path: Path) -> None:
    offsets = write_wal(tmp_path, some_batches(4))
    path = tmp_path / segment_name(0)
    log = path.read_bytes()
    path.write_bytes(log[: offsets[3] + 20])
    source = WalSource(tmp_path, FileSystem())
    path.write_bytes(log + b"and more")
    check = ChainCheck(TERMS, beginning())
    asyncio.run(audit(source, check, lambda block: None))
    assert check.tally.blocks == 4


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_what_is_no_log_can_not_be_checked(names: Sequence[str], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(OperatingError):
            verify(directory)


def test_a_log_without_blocks_can_not_be_checked(tmp_path: Path) -> None:
    write_wal(tmp_path, [SignedChain().signed(make_entry())])
    with pytest.raises(Unverifiable, match="no blocks"):
        verify(tmp_path)


def test_a_log_of_another_format_can_not_be_checked(tmp_path: Path) -> None:
    write_wal(tmp_path, some_batches(1), genesis=replace(GENESIS, format=2))
    with pytest.raises(Unverifiable, match="format 2"):
        verify(tmp_path)


# -- a log whose beginning was given back -------------------------------------------------------


def given_back(directory: Path, offsets: list[int], kept_from: int) -> None:
    give_back(FileSystem(), directory, 0, offsets[kept_from])


def position_at(batches: list[Batch], height: int) -> Position:
    check = ChainCheck(TERMS, beginning())
    for block in blocks_of(batches)[:height]:
        check.add(block)
    return check.position


@pytest.mark.parametrize("kept_from", range(1, 9))
def test_what_is_left_of_a_log_is_verified_behind_what_was_verified_before(
    kept_from: int, tmp_path: Path
) -> None:
    batches = some_batches(9)
    offsets = write_wal(tmp_path, batches[:3], batches[3:6], batches[6:])
    given_back(tmp_path, offsets, kept_from)
    with pytest.raises(Unverifiable, match="given back"):
        verify(tmp_path)
    # Also where the block before is still there, and is not to be checked again.
    for start in range(kept_from, 9):
        assert verify(tmp_path, position_at(batches, start)).blocks == 9 - start
    with pytest.raises(Unverifiable):
        verify(tmp_path, position_at(batches, kept_from - 1))


def test_nothing_new_behind_a_trusted_block_is_right_and_another_block_in_its_place_is_not(
    tmp_path: Path,
) -> None:
    batches = some_batches(4)
    write_wal(tmp_path, batches)
    assert verify(tmp_path, position_at(batches, 4)).blocks == 0
    forked = position_at(some_batches(4), 4)
    with pytest.raises(Fault, match="block 3: block_hash"):
        verify(tmp_path, forked)
    with pytest.raises(Unverifiable):
        verify(tmp_path, position_at(some_batches(9), 9))


def test_behind_a_trusted_hash_the_delegation_may_be_in_what_was_given_back(
    tmp_path: Path,
) -> None:
    batches = some_batches(9)
    offsets = write_wal(tmp_path, batches)
    given_back(tmp_path, offsets, 2)
    whole = position_at(batches, 2)
    bare = Position(height=2, block_hash=whole.block_hash)
    with pytest.raises(Unverifiable, match="give the delegations"):
        verify(tmp_path, bare)
    bare.delegations = whole.delegations
    assert verify(tmp_path, bare).blocks == 7


def test_damage_where_zeros_should_be_is_a_fault(tmp_path: Path) -> None:
    batches = some_batches(4)
    offsets = write_wal(tmp_path, batches)
    given_back(tmp_path, offsets, 2)
    path = tmp_path / segment_name(0)
    log = bytearray(path.read_bytes())
    log[offsets[1] + 9] = 1
    path.write_bytes(log)
    with pytest.raises(Fault, match="neither a record nor the zeros"):
        verify(tmp_path, position_at(batches, 2))


def test_records_given_back_while_they_are_read_can_not_be_checked(tmp_path: Path) -> None:
    batches = some_batches(4)
    offsets = write_wal(tmp_path / "wal", batches)
    path = tmp_path / "wal" / segment_name(0)
    log = bytearray(path.read_bytes())
    log[offsets[1] : offsets[2]] = bytes(offsets[2] - offsets[1])
    path.write_bytes(log)
    assert fault_of(tmp_path).height == 1
    checkpoint = Checkpoint(
        wal_id="log-1",
        environment="development",
        wal_offset=offsets[3],
        last_command_id=3,
        retained_offset=offsets[2],
    )
    write_checkpoint(FileSystem(), tmp_path / "checkpoint.json", checkpoint)
    with pytest.raises(Unverifiable, match="given back while"):
        verify(tmp_path)


# -- what only looks like a part ----------------------------------------------------------------


def test_a_missing_first_block_is_a_fault_where_the_log_begins_with_the_journal(
    tmp_path: Path,
) -> None:
    batches = some_batches(3)
    ids_go_on = replace(GENESIS, first_command_id=4)
    write_wal(tmp_path / "first", [make_batch(1, make_entry()), *batches[1:]])
    write_wal(tmp_path / "adopted", batches[1:], genesis=ids_go_on)
    assert fault_of(tmp_path / "first").height == 0
    with pytest.raises(Unverifiable, match="an earlier log"):
        verify(tmp_path / "adopted")
    assert verify(tmp_path / "adopted", position_at(batches, 1)).blocks == 2


def test_a_missing_segment_without_blocks_is_a_fault(tmp_path: Path) -> None:
    making = SignedChain()
    write_wal(
        tmp_path,
        [making.signed(tick())],
        [making.signed(make_entry())],
        [making.signed(tick())],
    )
    sorted(tmp_path.iterdir())[1].unlink()
    fault = fault_of(tmp_path)
    assert (fault.height, "goes on at" in fault.found) == (1, True)


def test_an_empty_segment_is_a_fault(tmp_path: Path) -> None:
    end = write_wal(tmp_path, some_batches(2))[-1]
    (tmp_path / segment_name(end)).touch()
    assert fault_of(tmp_path).found == "the segment is empty"


def test_zeros_behind_the_genesis_of_a_later_segment_were_records_once(tmp_path: Path) -> None:
    batches = some_batches(6)
    offsets = write_wal(tmp_path, batches[:2], batches[2:4], batches[4:])
    path = tmp_path / sorted(tmp_path.iterdir())[1].name
    log = bytearray(path.read_bytes())
    start = int(path.stem)
    log[offsets[2] - start : offsets[3] - start] = bytes(offsets[3] - offsets[2])
    path.write_bytes(log)
    assert fault_of(tmp_path).height == 2


def test_a_length_that_points_past_the_end_of_an_earlier_segment_is_a_fault(tmp_path: Path) -> None:
    batches = some_batches(4)
    offsets = write_wal(tmp_path, batches[:2], batches[2:])
    path = tmp_path / segment_name(0)
    log = bytearray(path.read_bytes())
    log[offsets[1] + 2] ^= 1
    path.write_bytes(log)
    assert fault_of(tmp_path).height == 1
