"""The checkpoint's keeper: it follows Postgres, backwards too, and never gives back too much."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from app.errors import DiskFull, StoreFailed, WalFailed
from app.replication.link import Progressed
from app.service import checkpoints
from app.service.checkpoints import CheckpointKeeper
from app.wal.checkpoint import Checkpoint, read_checkpoint
from app.wal.files import FileId, FileSystem
from app.wal.reserve import Reserve
from tests.support.faulty_files import Call, WatchedFiles, os_error
from tests.support.wal_files import WrittenWal, make_settings, open_wal, write_wal


class Kept:
    """A keeper on a real WAL of small segments; `limit` is what `keep_from` answers."""

    def __init__(
        self,
        wal: WrittenWal,
        start: Checkpoint | None = None,
        sync_commitments: Callable[[], int] | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.wal = wal
        self.files = WatchedFiles()
        self.limit = wal.end
        self.given_back: list[int] = []
        self.reserve = Reserve(self.files, wal.settings.data_dir / "reserve")
        self.keeper = CheckpointKeeper(
            self.files,
            wal.settings.checkpoint_path,
            wal.settings.wal_dir,
            start or open_checkpoint(wal),
            lambda: self.limit,
            self.given_back.append,
            sync_commitments,
            on_fatal,
            reserve=self.reserve,
        )
        self.keeper.start()

    async def reach(self, index: int) -> Checkpoint:
        """Let replication reach the end of a record, and wait for the checkpoint."""
        offset = self.wal.records[index].end
        self.progressed(index)
        return await asyncio.wait_for(self.keeper.wait_until(offset), 10)

    def progressed(self, index: int) -> None:
        self.keeper.progressed(
            Progressed(
                wal_offset=self.wal.records[index].end,
                last_command_id=index + 1,
                last_l2_seq=index,
                dead_letters=0,
            )
        )

    def on_disk(self) -> Checkpoint | None:
        return read_checkpoint(FileSystem(), self.wal.settings.checkpoint_path)


def open_checkpoint(wal: WrittenWal) -> Checkpoint:
    opened = open_wal(wal.settings)
    opened.log.close()
    return opened.checkpoint


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back after every record, so that small logs show it."""
    monkeypatch.setattr(checkpoints, "_STEP_BYTES", 1)


@pytest.fixture
async def kept(tmp_path: Path, small_steps: None) -> AsyncIterator[Kept]:
    made = Kept(write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3))
    yield made
    made.files.fault = lambda call: None
    await made.keeper.stop()


async def test_the_checkpoint_follows_replication(kept: Kept) -> None:
    for index in (0, 4, 8):
        current = await kept.reach(index)
        assert current.wal_offset == kept.wal.records[index].end
        assert (current.last_command_id, current.last_l2_seq) == (index + 1, index)
        assert kept.on_disk() == current


async def test_who_waits_for_what_was_reached_before_is_answered_at_once(kept: Kept) -> None:
    await kept.reach(4)
    current = await asyncio.wait_for(kept.keeper.wait_until(kept.wal.records[2].end), 10)
    assert current.wal_offset == kept.wal.records[4].end


async def test_who_waits_for_more_is_not_answered(kept: Kept) -> None:
    waiting = asyncio.create_task(kept.keeper.wait_until(kept.wal.records[5].end))
    await kept.reach(4)
    assert not waiting.done()
    await kept.reach(5)
    await asyncio.wait_for(waiting, 10)


async def test_the_checkpoint_goes_back_with_postgres_but_what_was_given_back_stays_known(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    await kept.reach(5)
    retained = kept.keeper.current.retained_offset
    assert retained > 0
    kept.progressed(1)
    await kept.keeper.stop()
    current = kept.on_disk()
    assert current is not None
    assert current.wal_offset == kept.wal.records[1].end
    assert current.retained_offset == retained
    assert "goes back" in caplog.text


async def test_the_log_is_given_back_only_behind_the_checkpoint_that_is_on_disk(
    kept: Kept,
) -> None:
    await kept.reach(8)
    await kept.keeper.stop()
    current = kept.on_disk()
    assert current is not None
    assert current.retained_offset == kept.wal.end
    operations = kept.files.operations()
    assert operations.index("rename") < operations.index("unlink")
    rename = operations.index("rename")
    assert operations[rename + 1] == "sync directory"
    assert operations.index("unlink") > rename + 1
    assert sum(kept.given_back) > 0


@pytest.mark.parametrize("limit", range(9))
async def test_nothing_is_given_back_beyond_what_is_needed_for_other_reasons(
    kept: Kept, limit: int
) -> None:
    kept.limit = kept.wal.records[limit].offset
    for index in range(9):
        await kept.reach(index)
    await kept.keeper.stop()
    current = kept.on_disk()
    assert current is not None
    assert current.retained_offset <= kept.limit
    opened = open_wal(kept.wal.settings)
    opened.log.close()
    assert opened.next_command_id == 10
    assert all(
        opened.index.get(entry.request_uuid.int)
        for record in kept.wal.records[limit:]
        for entry in record.entries
    )


async def test_nothing_is_given_back_before_a_step_is_worth_it(tmp_path: Path) -> None:
    kept = Kept(write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3))
    await kept.reach(8)
    await kept.keeper.stop()
    assert kept.given_back == []
    assert kept.keeper.current.retained_offset == 0


async def test_a_checkpoint_that_can_not_be_written_gives_nothing_back_and_is_tried_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0.01)
    failures: list[str] = []

    def fail_twice(call: Call) -> Exception | None:
        if call.operation != "sync" or len(failures) == 2:
            return None
        failures.append(call.name)
        return os_error(errno.ENOSPC)

    kept.files.fault = fail_twice
    current = await kept.reach(5)
    assert failures == ["checkpoint.json.tmp"] * 2
    assert kept.on_disk() == current
    await kept.keeper.stop()
    named = [call for call in kept.files.calls if call.name.endswith(("json", ".wal"))]
    assert named[0].operation == "rename"
    assert "unlink" in [call.operation for call in named]


async def test_a_failure_to_give_back_is_tried_again_with_the_next_checkpoint(kept: Kept) -> None:
    kept.files.fault = lambda call: (
        os_error(errno.EIO) if (call.operation, call.name[-4:]) == ("unlink", ".wal") else None
    )
    await kept.reach(4)
    kept.files.fault = lambda call: None
    await kept.reach(5)
    await kept.keeper.stop()
    assert kept.given_back
    assert not kept.wal.genesis[0].path.exists()


async def test_each_try_writes_a_file_of_its_own_and_no_failed_sync_is_asked_again(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0.01)
    synced: list[FileId] = []
    draft = kept.wal.settings.checkpoint_path.with_name("checkpoint.json.tmp")

    def fail_twice(call: Call) -> Exception | None:
        if call[:2] != ("sync", draft.name):
            return None
        synced.append(kept.files.identity_of(draft))
        held.append(kept.files.open(draft))
        return os_error(errno.EIO) if len(synced) < 3 else None

    # Open, so that no inode is used a second time.
    held: list[int] = []
    kept.files.fault = fail_twice
    await kept.reach(5)
    assert len(set(synced)) == len(synced) == 3
    assert kept.files.identity_of(kept.wal.settings.checkpoint_path) == synced[-1]
    for fd in held:
        kept.files.close(fd)


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_checkpoint_whose_name_can_not_be_synced_is_fatal_and_nothing_is_given_back(
    tmp_path: Path, small_steps: None, stopping: bool
) -> None:
    wal = write_wal(make_settings(tmp_path / "data"), [[1, 1, 1]] * 3)
    fatal: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    kept = Kept(wal, on_fatal=fatal.set_result)
    kept.files.fault = lambda call: (
        os_error(errno.EIO) if call[:2] == ("sync directory", "data") else None
    )
    kept.progressed(8)
    if stopping:
        with pytest.raises(WalFailed):
            await kept.keeper.stop()
    assert isinstance(await asyncio.wait_for(fatal, 10), WalFailed)
    assert kept.files.operations()[-2:] == ["rename", "sync directory"]
    assert kept.files.operations().count("sync directory") == 1
    assert kept.given_back == []
    assert kept.keeper.current.retained_offset == 0


@pytest.mark.parametrize("stopping", [False, True])
async def test_a_sync_that_fails_once_the_log_is_given_back_is_fatal(
    tmp_path: Path, small_steps: None, stopping: bool
) -> None:
    wal = write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3)
    fatal: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    kept = Kept(wal, on_fatal=fatal.set_result)
    kept.files.fault = lambda call: (
        os_error(errno.EIO) if call[:2] == ("sync directory", "wal") else None
    )
    kept.progressed(8)
    if stopping:
        with pytest.raises(WalFailed):
            await kept.keeper.stop()
    assert isinstance(await asyncio.wait_for(fatal, 10), WalFailed)
    assert kept.files.operations()[-2:] == ["unlink", "sync directory"]
    assert kept.given_back == []


async def test_a_store_whose_sync_fails_is_fatal_and_nothing_is_given_back(
    tmp_path: Path, small_steps: None
) -> None:
    wal = write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3)
    fatal: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def sync() -> int:
        raise StoreFailed("an I/O error")

    kept = Kept(wal, sync_commitments=sync, on_fatal=fatal.set_result)
    kept.progressed(8)
    assert isinstance(await asyncio.wait_for(fatal, 10), StoreFailed)
    assert kept.keeper.current.retained_offset == 0
    assert "unlink" not in kept.files.operations()


async def test_a_log_that_is_in_disorder_is_left_alone_and_the_checkpoint_still_follows(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.wal.genesis[1].path.unlink()
    await kept.reach(4)
    await kept.reach(8)
    await kept.keeper.stop()
    assert "can't give the log back" in caplog.text
    assert kept.given_back == []
    assert kept.on_disk() == kept.keeper.current


async def test_stopping_writes_what_is_still_to_be_written(kept: Kept) -> None:
    kept.progressed(7)
    await kept.keeper.stop()
    current = kept.on_disk()
    assert current is not None
    assert current.wal_offset == kept.wal.records[7].end


async def test_a_missing_checkpoint_file_is_written_again(kept: Kept) -> None:
    await kept.reach(3)
    kept.wal.settings.checkpoint_path.unlink()
    kept.progressed(3)
    await kept.keeper.stop()
    assert kept.on_disk() == kept.keeper.current


async def test_a_store_without_room_gives_nothing_back_but_the_checkpoint_follows(
    tmp_path: Path, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY_S", 0.01)
    wal = write_wal(make_settings(tmp_path), [[1, 1, 1]] * 3)
    has_room = asyncio.Event()

    def sync() -> int:
        if not has_room.is_set():
            raise DiskFull("no room")
        return wal.end

    kept = Kept(wal, sync_commitments=sync)
    await kept.reach(8)
    assert kept.keeper.current.retained_offset == 0
    assert kept.given_back == []
    assert kept.reserve.released, "the log goes on although room is needed to give it back"
    has_room.set()
    await kept.keeper.stop()
    assert kept.keeper.current.retained_offset == wal.end
    assert kept.given_back
    assert not kept.reserve.released


async def test_on_a_full_volume_the_reserve_is_room_for_the_checkpoint_and_is_kept_again(
    kept: Kept,
) -> None:
    reserve = kept.wal.settings.data_dir / "reserve"
    await kept.reach(0)
    assert reserve.stat().st_blocks * 512 >= 1 << 20

    def fault(call: Call) -> Exception | None:
        is_full = call.name == "checkpoint.json.tmp" and reserve.exists()
        return os_error(errno.ENOSPC) if is_full else None

    kept.files.fault = fault
    await kept.reach(8)
    await kept.keeper.stop()
    assert kept.given_back
    assert reserve.exists()
    assert not kept.reserve.released
