"""The decision table of protocol section 5: how a log may end. One test a row, on real files."""

import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest

from app.settings import WalTail
from tests.support.recovery_outcomes import (
    assert_cut,
    assert_names,
    opened,
    refusal,
    refused_start,
    tolerant,
)
from tests.support.wal_files import (
    ENVIRONMENT,
    WAL_ID,
    Record,
    WrittenWal,
    frame,
    make_settings,
    open_wal,
    progress_at,
    read_commands,
    snapshot,
    truncate,
    write_wal,
)


@pytest.fixture
def wal(tmp_path: Path) -> WrittenWal:
    """Two segments of three batches each, of two entries each; the tail is strict."""
    return write_wal(make_settings(tmp_path), [[2, 2, 2], [2, 2, 2]])


# -- clean end ------------------------------------------------------------------------------------


def test_a_clean_end_behind_the_evidence_goes_on(wal: WrittenWal) -> None:
    wal.checkpoint(wal.records[2].end)
    before = snapshot(wal.settings.data_dir)
    log = opened(wal)
    assert log.log.end == wal.end
    assert log.next_command_id == 13
    assert log.entries_to_replicate == 6
    assert snapshot(wal.settings.data_dir) == before


def test_a_clean_end_at_the_evidence_goes_on(wal: WrittenWal) -> None:
    wal.checkpoint(wal.end)
    log = opened(wal, progress=progress_at(wal.end, 12))
    assert log.entries_to_replicate == 0
    assert log.next_command_id == 13


def test_a_clean_end_before_the_checkpoint_is_corruption(wal: WrittenWal) -> None:
    wal.checkpoint(wal.end)
    wal.cut(wal.records[-1].offset)
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[1].path.name, wal.records[-1].offset)
    assert f"the checkpoint shows that it was durable up to {wal.end}" in error.reason


def test_a_clean_end_before_the_progress_row_is_corruption(wal: WrittenWal) -> None:
    wal.checkpoint(wal.records[0].end)
    wal.cut(wal.records[-1].offset)
    error = refusal(wal, progress=progress_at(wal.end, 12))
    assert error.offset == wal.records[-1].offset
    assert f"progress row in Postgres shows that it was durable up to {wal.end}" in error.reason


@pytest.mark.parametrize("behind", [0, 3])
def test_a_clean_end_before_what_was_given_back_is_corruption(wal: WrittenWal, behind: int) -> None:
    """Reading begins at the retained offset, which lies behind everything that is left here."""
    wal.checkpoint(wal.records[5 - behind].end, retained_offset=wal.records[5].end)
    wal.cut(wal.records[3].end)
    error = refusal(wal)
    assert error.offset == wal.records[3].end
    assert "durable up to" in error.reason


# -- the last record is incomplete ----------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 7, 8, 9, -1])
def test_an_incomplete_last_record_is_a_torn_tail(wal: WrittenWal, left: int) -> None:
    last = wal.records[-1]
    wal.cut((last.offset if left > 0 else last.end) + left)
    wal.checkpoint(last.offset)
    assert_cut(wal, 5)


def test_a_length_that_points_past_the_end_of_the_log_is_a_torn_tail(wal: WrittenWal) -> None:
    last = wal.records[-1]
    wal.damage(last.offset, struct.pack("<I", last.size))
    assert_cut(wal, 5)


def test_an_empty_last_segment_is_a_torn_tail(wal: WrittenWal) -> None:
    whole = write_wal(wal.settings, [[2, 2, 2], []])
    truncate(whole.genesis[1].path, 0)
    log = opened(whole)
    assert log.log.end == whole.records[-1].end
    assert not whole.genesis[1].path.exists()


def test_an_incomplete_genesis_of_the_last_segment_is_moved_aside(wal: WrittenWal) -> None:
    whole = write_wal(wal.settings, [[2, 2, 2], []])
    genesis = whole.genesis[1]
    truncate(genesis.path, 20)
    torn = genesis.path.read_bytes()
    log = open_wal(whole.settings)
    assert log.log.end == genesis.offset
    log.log.close()
    aside = genesis.path.with_name(f"{genesis.path.name}.{genesis.offset}.torn")
    assert aside.read_bytes() == torn
    assert read_commands(whole.settings.wal_dir).keys() == set(range(1, 7))


@pytest.mark.parametrize("source", ["checkpoint", "progress row"])
def test_an_incomplete_record_before_the_evidence_is_corruption(
    wal: WrittenWal, source: str
) -> None:
    last = wal.records[-1]
    progress = None
    if source == "checkpoint":
        wal.checkpoint(last.end)
    else:
        progress = progress_at(last.end, 12)
    wal.cut(last.end - 1)
    error = refusal(wal, progress=progress)
    assert_names(error, last, f"durable up to {last.end}")
    assert source in error.reason


def test_a_length_that_points_past_the_end_with_a_valid_record_behind_it_is_corruption(
    wal: WrittenWal,
) -> None:
    wal.damage(wal.records[4].offset + 3, b"\x7f")
    error = refusal(wal)
    assert_names(error, wal.records[4], f"a valid record follows at offset {wal.records[5].offset}")


# -- the last record is complete, but damaged -----------------------------------------------------


def zero_length(wal: WrittenWal, record: Record) -> None:
    wal.damage(record.offset, bytes(4))


def zeros(wal: WrittenWal, record: Record) -> None:
    wal.damage(record.offset, bytes(record.size))


def wrong_crc(wal: WrittenWal, record: Record) -> None:
    wal.flip(record.offset + 4)


def wrong_payload(wal: WrittenWal, record: Record) -> None:
    wal.flip(record.end - 1)


def past_the_end(wal: WrittenWal, record: Record) -> None:
    wal.damage(record.offset + 3, b"\x3f")


DAMAGED = [zero_length, zeros, wrong_crc, wrong_payload]
REASONS = {
    "zero_length": "length is zero",
    "zeros": "length is zero",
    "wrong_crc": "CRC-32C does not match",
    "wrong_payload": "CRC-32C does not match",
    "past_the_end": "bytes are left",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_last_record_refuses_a_strict_start_and_says_what_can_cut_it(
    wal: WrittenWal, damage: Any
) -> None:
    last = wal.records[-1]
    damage(wal, last)
    message = refused_start(wal)
    assert last.path.name in message
    assert f"offset {last.offset}" in message
    assert REASONS[damage.__name__] in message
    assert "`journal wal repair` can cut it off" in message


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_last_record_is_a_torn_tail_to_a_tolerant_start(
    wal: WrittenWal, damage: Any
) -> None:
    damage(wal, wal.records[-1])
    assert_cut(tolerant(wal), 5)


def cut_short(wal: WrittenWal, record: Record) -> None:
    wal.cut(record.end - 1)


@pytest.mark.parametrize("damage", [*DAMAGED, past_the_end, cut_short])
def test_a_cut_claims_no_more_than_is_known_of_what_it_cuts(
    wal: WrittenWal, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A sound disk tears only what nobody was told of; of a damaged one, nobody can know."""
    damage(wal, wal.records[-1])
    assert_cut(tolerant(wal), 5)
    (message,) = [text for text in caplog.messages if "cut a torn tail" in text]
    assert "nothing shows that it was acknowledged" in message
    assert "never" not in message


# -- corruption: any fault before the evidence, or with a valid record behind it ------------------


@pytest.mark.parametrize("damage", [*DAMAGED, past_the_end])
@pytest.mark.parametrize("tail", list(WalTail))
def test_a_fault_in_the_last_record_before_the_evidence_is_corruption(
    wal: WrittenWal, damage: Any, tail: WalTail
) -> None:
    last = wal.records[-1]
    wal.checkpoint(last.end)
    damage(wal, last)
    error = refusal(tolerant(wal) if tail is WalTail.TOLERANT else wal)
    assert_names(error, last, REASONS[damage.__name__])
    assert f"durable up to {last.end}" in error.reason


@pytest.mark.parametrize("damage", [*DAMAGED, past_the_end])
@pytest.mark.parametrize("tail", list(WalTail))
@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_fault_with_a_valid_record_behind_it_is_corruption(
    wal: WrittenWal, damage: Any, tail: WalTail, index: int
) -> None:
    """Record 2 is the last of its segment: what follows is the genesis of the next one."""
    record = wal.records[index]
    wal.checkpoint(0)
    damage(wal, record)
    error = refusal(tolerant(wal) if tail is WalTail.TOLERANT else wal)
    assert_names(error, record, REASONS[damage.__name__])
    following = wal.genesis[1].offset if index == 2 else wal.records[index + 1].offset
    assert f"follows at offset {following}" in error.reason


@pytest.mark.parametrize("damage", [*DAMAGED, past_the_end])
def test_a_fault_with_a_further_segment_behind_it_is_corruption_even_if_that_is_damaged(
    wal: WrittenWal, damage: Any
) -> None:
    """A segment is only begun once everything before it is durable, so this is no tail."""
    whole = tolerant(write_wal(wal.settings, [[2, 2, 2], []]))
    damage(whole, whole.records[-1])
    truncate(whole.genesis[1].path, 10)
    assert_names(refusal(whole), whole.records[-1], REASONS[damage.__name__])


def replace_last(wal: WrittenWal, payload: bytes) -> Record:
    """Put another record, with a right CRC, in the place of the last."""
    last = wal.records[-1]
    wal.cut(last.offset)
    with last.path.open("ab") as file:
        file.write(frame(payload))
    return last


def end_of_log(wal: WrittenWal) -> int:
    return wal.genesis[-1].offset + wal.genesis[-1].path.stat().st_size


def payload_of(offset: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "batch", "offset": offset, "first_command_id": 11, "commands": [], **fields}


UNDECODABLE = {
    "not MessagePack": b"\xc1\xc1\xc1",
    "not a map": msgpack.packb([1, 2]),
    "truncated MessagePack": msgpack.packb({"kind": "batch"})[:-1],
    "nested too deeply": b"\x91" * 100_000 + b"\x90",
    "not UTF-8": b"\x82\xa4kind\xa5batch\xa4\xff\xff\xff\xff\x00",
}


@pytest.mark.parametrize("payload", UNDECODABLE.values(), ids=UNDECODABLE)
def test_a_payload_with_a_right_crc_that_does_not_decode_is_corruption(
    wal: WrittenWal, payload: bytes
) -> None:
    last = replace_last(wal, payload)
    assert_names(refusal(tolerant(wal)), last, "does not decode")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "snapshot"},
        {"kind": None},
        {"first_command_id": "11"},
        {"commands": [1]},
        {"commands": [{"request_uuid": b"\1" * 16}]},
        {"commands": [{"request_uuid": b"\1" * 16, "received_ts_ms": 1, "command_data": "text"}]},
        {"commands": None},
    ],
    ids=str,
)
def test_a_record_with_a_right_crc_that_is_none_of_ours_is_corruption(
    wal: WrittenWal, fields: dict[str, Any]
) -> None:
    last = wal.records[-1]
    replace_last(wal, msgpack.packb(payload_of(last.offset, **fields)))
    assert_names(refusal(tolerant(wal)), last, "does not decode")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "snapshot"}, "does not decode"),
        ({"first_command_id": "11"}, "does not decode"),
        ({"commands": [1]}, "does not decode"),
        ({"commands": [{"received_ts_ms": 1, "command_data": b"\1"}]}, "does not decode"),
        ({"commands": [], "roots": 1}, "does not decode"),
        ({"offset": 7}, "its offset is 7"),
        ({"first_command_id": 10}, "command_id 10 where 11 was next"),
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [0, 20_000])
def test_a_replicated_record_that_is_none_of_ours_is_corruption(
    wal: WrittenWal, fields: dict[str, Any], reason: str, padding: int
) -> None:
    """Of what was replicated less is decoded; this is noticed all the same."""
    last = wal.records[-1]
    content = {**payload_of(last.offset), **fields, "padding": bytes(padding)}
    replace_last(wal, msgpack.packb(content))
    wal.checkpoint(end_of_log(wal))
    assert_names(refusal(tolerant(wal)), last, reason)


@pytest.mark.parametrize(
    ("checkpoint", "row", "replicated"), [(1, 0, True), (0, 1, True), (0, 0, False)]
)
@pytest.mark.parametrize("padding", [0, 20_000])
def test_commands_are_decoded_again_only_where_they_have_not_been_replicated(
    wal: WrittenWal, checkpoint: int, row: int, replicated: bool, padding: int
) -> None:
    """Replication has decoded every byte of what it has sent, and the CRC shows it unchanged."""
    last = wal.records[-1]
    command = {"request_uuid": b"\1" * 16, "command_data": "text, where bytes belong"}
    content = payload_of(last.offset, commands=[command], padding=bytes(padding))
    replace_last(wal, msgpack.packb(content))
    ends = [last.offset, end_of_log(wal)]
    wal.checkpoint(ends[checkpoint])
    progress = progress_at(ends[row], 11)
    if replicated:
        assert opened(wal, progress=progress).index.get(UUID(bytes=b"\1" * 16).int) == 11
    else:
        assert_names(refusal(wal, progress=progress), last, "does not decode")


def test_a_text_with_a_right_crc_that_is_not_utf8_is_corruption(wal: WrittenWal) -> None:
    last = wal.records[-1]
    command = {"request_uuid": b"\1" * 16, "received_ts_ms": 1, "command_data": b"\1"}
    fields = payload_of(last.offset, commands=[{**command, "command_type": "Tick"}])
    replace_last(wal, msgpack.packb(fields).replace(b"Tick", b"T\xffck"))
    assert_names(refusal(tolerant(wal)), last, "does not decode")


@pytest.mark.parametrize("difference", [-1, 1, 2**40])
def test_a_record_with_another_own_offset_is_corruption(wal: WrittenWal, difference: int) -> None:
    last = wal.records[-1]
    replace_last(wal, msgpack.packb(payload_of(last.offset + difference)))
    assert_names(refusal(tolerant(wal)), last, f"its offset is {last.offset + difference}")


def test_a_command_id_that_goes_back_is_corruption(wal: WrittenWal) -> None:
    last = wal.records[-1]
    replace_last(wal, msgpack.packb(payload_of(last.offset, first_command_id=10)))
    assert_names(refusal(tolerant(wal)), last, "command_id 10 where 11 was next")


def test_a_genesis_inside_a_segment_is_corruption(wal: WrittenWal) -> None:
    last = wal.records[-1]
    genesis = {
        "kind": "genesis",
        "offset": last.offset,
        "format": 1,
        "wal_id": WAL_ID,
        "environment": ENVIRONMENT,
        "created_ms": 1,
        "first_command_id": 11,
    }
    replace_last(wal, msgpack.packb(genesis))
    assert_names(refusal(tolerant(wal)), last, "a genesis inside a segment")


def test_a_segment_without_a_genesis_is_corruption(wal: WrittenWal) -> None:
    genesis = wal.genesis[1]
    genesis.path.write_bytes(frame(msgpack.packb(payload_of(genesis.offset))))
    assert_names(refusal(tolerant(wal)), genesis, "does not begin with a genesis")


@pytest.mark.parametrize("size", [0, 5, 30])
def test_a_first_segment_without_a_whole_genesis_is_corruption(tmp_path: Path, size: int) -> None:
    wal = write_wal(make_settings(tmp_path), [[]])
    truncate(wal.genesis[0].path, size)
    error = refusal(wal)
    assert (error.segment, error.offset) == (wal.genesis[0].path.name, 0)
