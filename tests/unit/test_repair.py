"""`journal wal repair`: it cuts a tail, after a look and a copy, once; and nothing else, ever."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app import repair
from app.cli import main
from app.errors import CorruptionError, StartRefused, WalLocked
from app.service.opening import lock_wal
from app.settings import Settings
from app.wal.files import FileSystem
from tests.support import store_blocks
from tests.support.faulty_files import Call, Crash, WatchedFiles
from tests.support.wal_files import (
    ENVIRONMENT,
    WAL_ID,
    WrittenWal,
    frame,
    make_settings,
    open_wal,
    patch,
    read_commands,
    snapshot,
    truncate,
    write_wal,
)


def zeroed(wal: WrittenWal) -> None:
    wal.damage(wal.records[-1].offset, bytes(wal.records[-1].size))


def wrong_crc(wal: WrittenWal) -> None:
    wal.flip(wal.end - 1)


def torn(wal: WrittenWal) -> None:
    wal.cut(wal.end - 3)


def torn_genesis(wal: WrittenWal) -> None:
    truncate(wal.genesis[-1].path, 11)


@pytest.fixture(autouse=True)
def umask() -> None:
    """As the service writes, for itself alone."""
    os.umask(0o077)


Damage = Callable[[WrittenWal], None]
tails = pytest.mark.parametrize("damage", [zeroed, wrong_crc, torn])


def make_wal(directory: Path, damage: Damage | None = None) -> WrittenWal:
    wal = write_wal(make_settings(directory), [[2, 2], [1, 2]])
    if damage is not None:
        damage(wal)
    return wal


def database_that_is_away(settings: Settings) -> str:
    return f"postgresql:///postgres?host={settings.data_dir}"


def run(wal: WrittenWal, files: FileSystem | None = None) -> tuple[str, str]:
    """Repair; returns what was shown before, and what was said at the end."""
    shown: list[str] = []

    def confirm(finding: str, was_asked: bool) -> None:
        assert not was_asked
        shown.append(finding)

    said = repair.run(wal.settings, database_that_is_away(wal.settings), confirm, files)
    return "".join(shown), said


def refused(wal: WrittenWal, *errors: type[Exception]) -> str:
    """Why nothing was repaired; nothing was asked, and not one byte has changed."""
    before = snapshot(wal.settings.data_dir)
    with pytest.raises(errors or CorruptionError) as caught:
        run(wal)
    assert snapshot(wal.settings.data_dir) == before
    return str(caught.value)


def command(wal: WrittenWal, *options: str, answer: str | None = None) -> Result:
    settings = wal.settings
    arguments = ["--data-dir", str(settings.data_dir), "--environment", ENVIRONMENT]
    arguments += ["--database-url", database_that_is_away(settings), *options]
    return CliRunner().invoke(main, ["wal", "repair", *arguments], input=answer)


@tails
def test_a_tail_that_a_strict_start_refuses_is_cut_once_and_the_log_goes_on(
    tmp_path: Path, damage: Damage
) -> None:
    wal = make_wal(tmp_path, damage)
    last = wal.records[-1]
    tail = last.path.read_bytes()[last.at :]
    shown, said = run(wal)
    assert f"good up to offset {last.offset}" in shown
    assert "0 (nothing)" in shown
    assert "Postgres, which might know of more, could not be asked" in shown
    assert f"{len(tail)} bytes would be copied aside" in shown
    aside = last.path.with_name(f"{last.path.name}.{last.offset}.torn")
    assert str(aside) in said
    assert aside.read_bytes() == tail
    assert list(read_commands(wal.settings.wal_dir).values()) == wal.uuids[:5]
    before = snapshot(tmp_path)
    assert run(wal) == (
        "",
        f"the log ends cleanly at offset {last.offset}: there is nothing to repair",
    )
    assert snapshot(tmp_path) == before
    opened = open_wal(wal.settings)
    opened.log.close()
    assert (opened.log.end, opened.next_command_id) == (last.offset, 6)


@tails
def test_the_copy_is_durable_before_the_cut_and_the_cut_before_it_says_so(
    tmp_path: Path, damage: Damage
) -> None:
    wal = make_wal(tmp_path, damage)
    last = wal.records[-1]
    files = WatchedFiles()
    run(wal, files)
    operations = [call.operation for call in files.calls]
    cut = files.calls.index(Call("truncate", last.path.name, last.at))
    assert operations[cut - 3 : cut] == ["sync", "rename", "sync directory"]
    assert files.calls[cut + 1 :] == [Call("sync", last.path.name)]


@pytest.mark.parametrize("damage", [zeroed, wrong_crc, torn, torn_genesis])
def test_after_a_crash_at_any_step_it_is_run_again_with_the_same_outcome(
    tmp_path: Path, damage: Damage
) -> None:
    undisturbed = WatchedFiles()
    run(make_wal(tmp_path / "undisturbed", damage), undisturbed)
    for step in range(len(undisturbed.calls)):
        directory = tmp_path / str(step)
        wal = make_wal(directory, damage)
        kept = wal.records[: 2 if damage is torn_genesis else -1]
        whole = {path.name: path.read_bytes() for path in wal.settings.wal_dir.glob("*.wal")}
        files = WatchedFiles()
        files.crash_at(step)
        with pytest.raises(Crash):
            run(wal, files)
        run(wal)
        uuids = [entry.request_uuid for record in kept for entry in record.entries]
        assert list(read_commands(wal.settings.wal_dir).values()) == uuids
        end = wal.genesis[-1].path
        left = end.read_bytes() if end.exists() else b""
        (aside,) = wal.settings.wal_dir.glob("*.torn")
        assert left + aside.read_bytes() == whole[end.name]


def test_it_asks_and_changes_nothing_without_a_yes(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, wrong_crc)
    before = snapshot(tmp_path)
    result = command(wal, answer="n\n")
    assert result.exit_code == 1
    assert "the CRC-32C does not match" in result.stdout
    assert "Go on?" in result.stdout
    assert snapshot(tmp_path) == before
    result = command(wal, "--yes", "--without-postgres")
    assert result.exit_code == 0
    assert "Go on?" not in result.stdout
    assert f"cut at offset {wal.records[-1].offset} and synced" in result.stdout


def test_a_yes_from_before_is_none_to_a_postgres_that_can_not_be_asked(tmp_path: Path) -> None:
    """Without `--yes` who is asked reads that it could not be."""
    wal = make_wal(tmp_path, wrong_crc)
    before = snapshot(tmp_path)
    result = command(wal, "--yes")
    assert result.exit_code == 1
    assert "Postgres, which might know of more, could not be asked" in result.stdout
    assert result.stderr.splitlines()[-1].endswith("or add --without-postgres")
    assert snapshot(tmp_path) == before
    result = command(wal, answer="y\n")
    assert result.exit_code == 0
    assert f"cut at offset {wal.records[-1].offset} and synced" in result.stdout


def test_what_is_refused_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    wal = make_wal(tmp_path)
    wal.flip(wal.records[0].end - 1)
    result = command(wal, "--yes")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"journal: {wal.genesis[0].path.name}: offset")


# -- what is no tail ------------------------------------------------------------------------------


def test_damage_before_the_checkpoint_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, wrong_crc)
    wal.checkpoint(wal.end)
    assert "the checkpoint shows that the log was durable" in refused(wal)


def test_damage_before_the_commitment_store_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, wrong_crc)
    store = store_blocks.open_store(wal.settings.commitments_dir)
    batch = [store_blocks.command(1)]
    block = store_blocks.prepare(store, batch)
    commands = store_blocks.commands_of(store, batch)
    store.apply(block, block.header, None, commands, WAL_ID, wal.end)
    store.close()
    with pytest.raises(CorruptionError, match="the commitment store shows that"):
        run(wal)
    assert wal.records[-1].path.stat().st_size == wal.end - wal.genesis[-1].offset


def test_damage_with_a_valid_record_behind_it_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path)
    wal.flip(wal.records[-2].end - 1)
    assert f"a valid record follows at offset {wal.records[-1].offset}" in refused(wal)


def test_damage_with_a_further_segment_behind_it_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, zeroed)
    wal.flip(wal.records[1].end - 1)
    assert wal.genesis[0].path.name in refused(wal)


def test_a_payload_with_a_right_crc_that_does_not_decode_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path)
    last = wal.records[-1]
    patch(last.path, last.at, frame(b"\xc1" * (last.size - 8)))
    assert "does not decode" in refused(wal)


def test_a_missing_segment_is_no_tail(tmp_path: Path) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1], [1]])
    wal.genesis[1].path.unlink()
    assert "missing" in refused(wal)


def test_a_checkpoint_ahead_of_the_log_is_no_tail(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, torn)
    wal.checkpoint(wal.end + 100)
    assert f"durable up to {wal.end + 100}" in refused(wal)


def test_a_checkpoint_of_another_environment_stops_it(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, torn)
    wal.checkpoint(0, environment="other")
    assert "'other'" in refused(wal, StartRefused)


# -- whom it would disturb ------------------------------------------------------------------------


def test_a_running_service_keeps_its_log_to_itself(tmp_path: Path) -> None:
    wal = make_wal(tmp_path, wrong_crc)
    files = FileSystem()
    lock = lock_wal(files, wal.settings)
    try:
        assert "in use by another process" in refused(wal, WalLocked)
    finally:
        files.close(lock)


def test_what_others_may_read_or_write_is_not_opened(tmp_path: Path) -> None:
    """Nor is a PostgreSQL started beside it: as root, that would change whose the database is."""
    wal = make_wal(tmp_path, wrong_crc)
    store = wal.settings.commitments_dir
    store.mkdir(mode=0o700)
    (store / "000004.log").touch()
    (store / "000004.log").chmod(0o644)
    assert f"{store / '000004.log'} has the mode 0644" in refused(wal, StartRefused)
    before = snapshot(tmp_path)
    options = ["--data-dir", str(tmp_path), "--environment", ENVIRONMENT, "--yes"]
    result = CliRunner().invoke(main, ["wal", "repair", *options])
    assert result.exit_code == 1
    assert f"{store / '000004.log'} has the mode 0644" in result.stderr
    assert snapshot(tmp_path) == before


def test_a_directory_without_a_log_is_left_as_it_is(tmp_path: Path) -> None:
    absent = WrittenWal(Settings(data_dir=tmp_path / "absent", environment=ENVIRONMENT), [], [])
    assert "does not exist" in refused(absent, StartRefused)
    assert not (tmp_path / "absent").exists()
    empty = WrittenWal(make_settings(tmp_path / "empty"), [], [])
    assert "holds no segment" in refused(empty, StartRefused)
