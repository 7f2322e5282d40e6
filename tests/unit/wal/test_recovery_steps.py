"""What recovery does to the disk, in which order, and a crash at each of its steps."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import JournalError
from app.settings import WalTail
from app.wal.checkpoint import read_checkpoint
from app.wal.files import FileSystem
from tests.support.faulty_files import Call, Crash, WatchedFiles
from tests.support.wal_files import (
    WrittenWal,
    make_record,
    make_settings,
    numbered,
    open_wal,
    read_commands,
    snapshot,
    truncate,
    write_wal,
)


def torn_record(wal: WrittenWal) -> None:
    wal.cut(wal.end - 3)


def length_past_the_end(wal: WrittenWal) -> None:
    wal.damage(wal.records[-1].offset, struct.pack("<I", 1 << 20))


def wrong_crc(wal: WrittenWal) -> None:
    wal.flip(wal.end - 1)


def torn_genesis(wal: WrittenWal) -> None:
    truncate(wal.genesis[-1].path, 11)


def nothing(wal: WrittenWal) -> None:
    """A clean end."""


def leftover_drafts(wal: WrittenWal) -> None:
    wal.cut(wal.end - 3)
    (wal.settings.wal_dir / "00000000000000099999.wal.tmp").write_bytes(b"draft")


Damage = Callable[[WrittenWal], None]
KINDS = [torn_record, length_past_the_end, wrong_crc, torn_genesis, leftover_drafts, nothing]


def make_wal(directory: Path, damage: Damage) -> WrittenWal:
    segments = [[2, 2], []] if damage is torn_genesis else [[2, 2], [2, 2]]
    wal = write_wal(make_settings(directory, wal_tail=WalTail.TOLERANT), segments)
    damage(wal)
    return wal


def recovered(directory: Path) -> dict[str, bytes]:
    """The state after recovery has run to its end."""
    open_wal(make_settings(directory, wal_tail=WalTail.TOLERANT)).log.close()
    return snapshot(directory)


@pytest.mark.parametrize("damage", KINDS)
def test_a_crash_at_any_step_of_recovery_changes_nothing_about_its_outcome(
    tmp_path: Path, damage: Damage
) -> None:
    origin = tmp_path / "origin"
    make_wal(origin, damage)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(origin, undisturbed)
    files = WatchedFiles()
    open_wal(make_settings(undisturbed, wal_tail=WalTail.TOLERANT), files=files).log.close()
    expected = snapshot(undisturbed)
    steps = len(files.calls)
    assert steps >= 3
    for step in range(steps):
        for second in {0, step, None}:
            directory = tmp_path / f"{step}-{second}"
            shutil.copytree(origin, directory)
            crash(directory, step)
            if second is not None:
                crash(directory, second)
            assert recovered(directory) == expected, (files.calls[step], second)


def crash(directory: Path, step: int) -> None:
    """Recover until the process dies at a step, if it comes that far."""
    files = WatchedFiles()
    files.crash_at(step)
    try:
        opened = open_wal(make_settings(directory, wal_tail=WalTail.TOLERANT), files=files)
    except Crash:
        return
    files.fault = lambda call: None
    opened.log.close()


@pytest.mark.parametrize("damage", [torn_record, length_past_the_end, wrong_crc])
def test_a_torn_tail_is_copied_and_synced_before_it_is_cut_and_the_cut_is_synced(
    tmp_path: Path, damage: Damage
) -> None:
    wal = make_wal(tmp_path, damage)
    end = wal.records[-1].offset
    segment = wal.genesis[-1].path
    torn = segment.read_bytes()[end - wal.genesis[-1].offset :]
    files = WatchedFiles()
    open_wal(wal.settings, files=files).log.close()
    aside = f"{segment.name}.{end}.torn"
    cut = Call("truncate", segment.name, end - wal.genesis[-1].offset)
    steps = [
        Call("create", f"{aside}.tmp"),
        Call("write", f"{aside}.tmp", 0, len(torn)),
        Call("sync", f"{aside}.tmp"),
        Call("rename", aside),
        Call("sync directory", "wal"),
        cut,
        Call("sync", segment.name),
    ]
    assert files.calls[: len(steps)] == steps
    assert (wal.settings.wal_dir / aside).read_bytes() == torn


@pytest.mark.parametrize("damage", [nothing, torn_record])
def test_the_last_record_is_rewritten_in_place_and_synced_before_the_log_is_opened(
    tmp_path: Path, damage: Damage
) -> None:
    """What a process left in the page cache alone is durable only after a write of our own."""
    wal = make_wal(tmp_path, damage)
    last = wal.records[-1 if damage is nothing else -2]
    files = WatchedFiles()
    open_wal(wal.settings, files=files).log.close()
    rewritten = files.calls.index(Call("write", last.path.name, last.at, last.size))
    assert files.calls[rewritten + 1] == Call("sync", last.path.name)
    assert files.calls[rewritten + 2] == Call("sync directory", "wal")
    assert all(call.operation == "allocate" for call in files.calls[rewritten + 3 :])


@pytest.mark.parametrize("segments", [[[]], [[2], []]])
def test_a_last_record_that_is_a_genesis_is_rewritten_too(
    tmp_path: Path, segments: list[list[int]]
) -> None:
    wal = write_wal(make_settings(tmp_path), segments)
    genesis = wal.genesis[-1]
    files = WatchedFiles()
    open_wal(wal.settings, files=files).log.close()
    assert Call("write", genesis.path.name, 0, genesis.size) in files.calls


def test_a_sync_that_fails_during_recovery_stops_the_start(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, nothing)
    files = WatchedFiles()
    files.fault = lambda call: OSError(5, "I/O error") if call.operation == "sync" else None
    with pytest.raises(OSError, match="I/O error"):
        open_wal(wal.settings, files=files)


def test_a_second_segment_torn_again_keeps_the_copy_of_the_first_time(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, torn_record)
    recovered(tmp_path)
    first = {path.name: path.read_bytes() for path in wal.settings.wal_dir.glob("*.torn")}
    recovered(tmp_path)
    assert {path.name: path.read_bytes() for path in wal.settings.wal_dir.glob("*.torn")} == first


@pytest.mark.parametrize("damage", [torn_record, torn_genesis])
def test_what_is_torn_later_at_the_same_offset_has_a_copy_of_its_own(
    tmp_path: Path, damage: Damage
) -> None:
    wal = make_wal(tmp_path, damage)
    segment = wal.genesis[-1]
    end = segment.offset if damage is torn_genesis else wal.records[-1].offset
    torn = segment.path.read_bytes()[end - segment.offset :]
    recovered(tmp_path)
    for tail in (b"\1", b"\2", b"\1"):
        with segment.path.open("ab") as file:
            file.write(tail)
        recovered(tmp_path)
    copies = {path.suffixes[-2]: path.read_bytes() for path in wal.settings.wal_dir.glob("*.torn")}
    assert copies == {f".{end}": torn, ".2": b"\1", ".3": b"\2"}


def test_drafts_are_removed_but_only_once_the_log_is_found_to_be_sound(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, leftover_drafts)
    wal.flip(wal.records[0].end - 1)
    before = snapshot(tmp_path)
    with pytest.raises(JournalError):
        open_wal(wal.settings)
    assert snapshot(tmp_path) == before
    wal.flip(wal.records[0].end - 1)
    open_wal(wal.settings).log.close()
    assert not list(wal.settings.wal_dir.glob("*.tmp"))


def test_a_log_that_was_recovered_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, torn_record)
    opened = open_wal(wal.settings)
    entries = numbered(3)
    record = make_record(opened.log.end, opened.next_command_id, entries)
    opened.log.append(bytearray(record))
    opened.log.sync()
    opened.log.close()
    again = open_wal(wal.settings)
    again.log.close()
    expected = [*wal.uuids[:6], *(entry.request_uuid for entry in entries)]
    assert read_commands(wal.settings.wal_dir) == dict(enumerate(expected, 1))
    assert again.next_command_id == 10


def test_the_checkpoint_is_not_touched_by_recovery(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, torn_record)
    checkpoint = wal.checkpoint(wal.records[0].end)
    open_wal(wal.settings).log.close()
    assert read_checkpoint(FileSystem(), wal.settings.checkpoint_path) == checkpoint
    assert read_commands(wal.settings.wal_dir).keys() == set(range(1, 7))
