"""`journal wal inspect` on logs of the test's own making, sound and damaged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cli import main
from app.wal.record import Genesis, RawBatch, encode_record, raw_commands
from app.wal.segments import segment_name

BODIES = [bytes.fromhex("81ac726571756573745f75756964c400")] * 3


def genesis(offset: int, first_command_id: int) -> bytes:
    record = Genesis(
        offset=offset,
        wal_id="w",
        environment="test",
        created_ms=1,
        first_command_id=first_command_id,
    )
    return bytes(encode_record(record))


def batch(offset: int, first_command_id: int) -> bytes:
    return bytes(
        encode_record(
            RawBatch(
                offset=offset, first_command_id=first_command_id, commands=raw_commands(BODIES)
            )
        )
    )


def segment(start: int, first_command_id: int, batches: int) -> tuple[bytes, list[int]]:
    """A segment, and the logical offsets of its records."""
    data = genesis(start, first_command_id)
    offsets = [start]
    for number in range(batches):
        offsets.append(start + len(data))
        data += batch(start + len(data), first_command_id + len(BODIES) * number)
    return data, offsets


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """A log of two segments, with three batches and two."""
    first, _ = segment(0, 1, 3)
    second, _ = segment(len(first), 10, 2)
    (tmp_path / segment_name(0)).write_bytes(first)
    (tmp_path / segment_name(len(first))).write_bytes(second)
    (tmp_path / "lock").write_text("1")
    return tmp_path


def inspect(wal: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["wal", "inspect", str(wal), *arguments])


def lines(wal: Path) -> list[dict[str, Any]]:
    result = inspect(wal, "--json", "--records")
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return [json.loads(line) for line in result.stdout.splitlines()]


def kinds(wal: Path) -> list[str]:
    return [line["kind"] for line in lines(wal)]


def test_a_sound_log_is_shown_record_by_record(wal: Path) -> None:
    assert kinds(wal) == [
        *["genesis", "batch", "batch", "batch", "segment"],
        *["genesis", "batch", "batch", "segment"],
    ]
    batches = [line for line in lines(wal) if line["kind"] == "batch"]
    assert [line["first_command_id"] for line in batches] == [1, 4, 7, 10, 13]
    text = inspect(wal)
    assert text.exit_code == 0
    assert "commands 1 to 9" in text.stdout
    assert len(text.stdout.splitlines()) == 2


def test_given_back_regions_are_zeros_not_damage(wal: Path) -> None:
    path = wal / segment_name(0)
    data, offsets = segment(0, 1, 3)
    path.write_bytes(data[: offsets[1]] + bytes(offsets[3] - offsets[1]) + data[offsets[3] :])
    assert kinds(wal)[:4] == ["genesis", "zeros", "batch", "segment"]
    assert lines(wal)[1]["length"] == offsets[3] - offsets[1]
    assert inspect(wal).exit_code == 0


def test_zeros_that_were_records_are_damage(wal: Path) -> None:
    data, offsets = segment(0, 1, 3)
    lost = data[: offsets[2]] + bytes(offsets[3] - offsets[2]) + data[offsets[3] :]
    (wal / segment_name(0)).write_bytes(lost)
    assert kinds(wal)[:4] == ["genesis", "batch", "damage", "batch"]
    second, offsets = segment(len(data), 10, 2)
    zeros = bytes(offsets[2] - offsets[1])
    newest = wal / segment_name(len(data))
    newest.write_bytes(second[: offsets[1] - len(data)] + zeros + second[offsets[2] - len(data) :])
    assert kinds(wal)[5:8] == ["genesis", "damage", "batch"]


def test_a_length_that_begins_with_zeros_belongs_to_its_record(tmp_path: Path) -> None:
    head = genesis(0, 1)
    gap = 4096 - len(head)
    for padding in range(400):
        record = RawBatch(
            offset=4096, first_command_id=1, commands=raw_commands([msgpack.packb(bytes(padding))])
        )
        data = bytes(encode_record(record))
        if data[0] == 0:
            break
    (tmp_path / segment_name(0)).write_bytes(head + bytes(gap) + data)
    assert data[0] == 0
    found = [(line["kind"], line["offset"]) for line in lines(tmp_path)]
    assert found[1:3] == [("zeros", len(head)), ("batch", 4096)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda d, at: d[: at + 30] + bytes([d[at + 30] ^ 1]) + d[at + 31 :], "CRC-32C does not"),
        (lambda d, at: d[:at] + b"\xff\xff\xff\x7f" + d[at + 4 :], "is announced"),
        (lambda d, at: d[:at] + bytes(4) + d[at + 4 :], "zero length"),
    ],
)
def test_damage_is_reported_where_it_is_and_reading_goes_on_behind_it(
    wal: Path, damage: Callable[[bytes, int], bytes], reason: str
) -> None:
    path = wal / segment_name(0)
    data, offsets = segment(0, 1, 3)
    path.write_bytes(damage(data, offsets[2]))
    assert kinds(wal)[:5] == ["genesis", "batch", "damage", "batch", "segment"]
    found = lines(wal)[2]
    assert (found["offset"], found["length"]) == (offsets[2], offsets[3] - offsets[2])
    assert reason in found["detail"]
    result = inspect(wal)
    assert result.exit_code == 1
    assert str(offsets[2]) in result.stdout


def test_a_record_at_another_place_than_it_says_is_damage(wal: Path) -> None:
    path = wal / segment_name(0)
    data, offsets = segment(0, 1, 3)
    path.write_bytes(data[: offsets[1]] + data[offsets[2] :])
    details = [line["detail"] for line in lines(wal) if line["kind"] == "damage"]
    assert f"the record's own offset is {offsets[2]}" in details[0]


def test_a_torn_tail_and_a_missing_segment_are_damage(wal: Path) -> None:
    data, _ = segment(0, 1, 3)
    (wal / segment_name(0)).write_bytes(data[:-3])
    details = [line["detail"] for line in lines(wal) if line["kind"] == "damage"]
    assert "is announced" in details[0]
    assert details[1] == (
        f"the segment before it ends at {len(data) - 3}, this one begins at {len(data)}"
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda path: None, "No such file or directory", id="not-there"),
        pytest.param(lambda path: path.write_text("x"), "Not a directory", id="file"),
        pytest.param(lambda path: path.mkdir(), "holds no .wal file", id="empty"),
    ],
)
def test_where_there_is_no_log_that_is_one_line_and_no_damage(
    tmp_path: Path, make: Callable[[Path], object], reason: str
) -> None:
    """A check by exit code must not take a mistyped path for a damaged log, nor for a sound one."""
    make(tmp_path / "wal")
    result = CliRunner().invoke(main, ["wal", "inspect", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"journal: {tmp_path / 'wal'}")
    assert reason in result.stderr
    assert "the directory of a write-ahead log is allowed" in result.stderr
    assert result.stderr.count("\n") == 1


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_damage_every_byte_is_accounted_for(
    tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(segment(0, 1, 3)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.one_of(st.binary(max_size=40), st.integers(0, 60).map(bytes)))
        content[at : at + data.draw(st.sampled_from([0, len(junk)]))] = junk
    (tmp_path / segment_name(0)).write_bytes(content)
    found = [line for line in lines(tmp_path) if line["kind"] != "segment"]
    offset = 0
    for line in found:
        assert line["offset"] == offset
        assert line["length"] > 0
        offset += line["length"]
    assert offset == len(content)
