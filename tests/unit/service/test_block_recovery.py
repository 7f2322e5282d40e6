"""What the commitment store knows of the log at start, and what is read again for it."""

from pathlib import Path

import pytest

from app.chain.store import Seen
from app.errors import CorruptionError
from app.service.block_recovery import LogExtent, catch_up
from app.service.opening import open_log
from app.wal.files import FileSystem
from app.wal.segments import list_segments
from app.wal.sync import FdatasyncSyncer
from tests.support.store_blocks import open_store
from tests.support.wal_files import WAL_ID, WrittenWal, make_settings, write_wal


@pytest.fixture
def wal(tmp_path: Path) -> WrittenWal:
    """Two segments of three batches each, without blocks."""
    return write_wal(make_settings(tmp_path), [[2, 2, 2], [2, 2, 2]])


def see(wal: WrittenWal, end: int) -> None:
    """Let the commitment store know the log up to `end`, as a service that stops does."""
    store = open_store(wal.settings.commitments_dir)
    store.sync(Seen(WAL_ID, end))
    store.close()


def caught_up(wal: WrittenWal) -> int:
    files = FileSystem()
    segments = list_segments(files, wal.settings.wal_dir)
    store = open_store(wal.settings.commitments_dir)
    try:
        return catch_up(files, LogExtent(segments, WAL_ID, 0, wal.end), store)
    finally:
        store.close()


@pytest.mark.parametrize("seen", [2, 5])
def test_what_the_store_has_seen_is_not_read_for_it_again(wal: WrittenWal, seen: int) -> None:
    see(wal, wal.records[seen].end)
    wal.flip(wal.records[seen].end - 1)
    assert caught_up(wal) == 0


@pytest.mark.parametrize("seen", [1, 2, 4])
def test_what_the_store_has_not_seen_is_read_for_it(wal: WrittenWal, seen: int) -> None:
    see(wal, wal.records[seen].end)
    wal.flip(wal.records[seen + 1].end - 1)
    with pytest.raises(CorruptionError) as caught:
        caught_up(wal)
    assert caught.value.offset == wal.records[seen + 1].offset


def test_a_log_that_ends_before_what_the_store_has_seen_lost_what_was_durable(
    wal: WrittenWal,
) -> None:
    """Without a single block, too: the store is only read from there on."""
    see(wal, wal.end)
    wal.cut(wal.records[-1].offset)
    files, store = FileSystem(), open_store(wal.settings.commitments_dir)
    try:
        with pytest.raises(CorruptionError, match=f"the commitment store .* up to {wal.end}"):
            open_log(files, wal.settings, FdatasyncSyncer(files), None, lambda: 0, store)
    finally:
        store.close()
