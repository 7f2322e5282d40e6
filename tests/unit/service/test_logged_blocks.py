"""The content of blocks is found in the log wherever it lies, and only while it is there."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.model.entry import Entry
from app.service.logged_blocks import LoggedBlocks
from app.wal.files import FileSystem
from app.wal.record import read_outline
from app.wal.retention import give_back
from app.wal.segments import list_segments
from tests.support.block_service import BlockService
from tests.support.faulty_files import WatchedFiles
from tests.support.journal_entries import make_entry

SEGMENT_BYTES = 64 * 1024
DATA = b"\x01" * 8000


def tick() -> Entry:
    return make_entry(command_type="TickSnapshot", command_data=DATA)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BlockService]:
    """Three blocks or so a segment, with batches in between that are none."""
    running = BlockService(tmp_path / "data", wal_segment_bytes=SEGMENT_BYTES)
    yield running
    await running.close()


@pytest.fixture
def logged(service: BlockService) -> LoggedBlocks:
    return LoggedBlocks(WatchedFiles(), service.settings.wal_dir, lambda: service.retained)


async def make_blocks(service: BlockService, count: int) -> list[tuple[Entry, ...]]:
    batches: list[tuple[Entry, ...]] = [
        (make_entry(), tick(), make_entry(command_type="Other"), tick()) for _ in range(count)
    ]
    await service.commit_all(
        [each for batch in batches for each in ((make_entry(),), batch, (make_entry(),))]
    )
    return batches


async def found(service: BlockService, logged: LoggedBlocks, height: int) -> list[Entry] | None:
    """The entries of a block, after checking their numbers."""
    block = service.store.block(height)
    assert block is not None
    entries = await logged.entries(block, service.store.wal_offset)
    if entries is None:
        return None
    commands = service.store.commands(height)
    assert list(entries) == [command.command_id for command in commands]
    uuids = [entry.request_uuid.bytes for entry in entries.values()]
    assert uuids == [command.request_uuid for command in commands]
    return list(entries.values())


@pytest.mark.parametrize("order", [1, -1, 7])
async def test_every_block_is_found_in_any_order(
    service: BlockService, logged: LoggedBlocks, order: int
) -> None:
    batches = await make_blocks(service, 40)
    assert len(list_segments(FileSystem(), service.settings.wal_dir)) > 8
    for height in (step * order % 40 for step in range(40)):
        assert await found(service, logged, height) == [batches[height][1], batches[height][3]]


async def test_a_block_is_found_as_soon_as_it_is_acknowledged(
    service: BlockService, logged: LoggedBlocks
) -> None:
    for height in range(20):
        ((_, first, _, second),) = await make_blocks(service, 1)
        assert await found(service, logged, height) == [first, second]


async def test_what_was_given_back_is_not_found_and_the_rest_still_is(
    service: BlockService, logged: LoggedBlocks
) -> None:
    """Also where the places of blocks had been remembered from before."""
    batches = await make_blocks(service, 30)
    fresh = LoggedBlocks(FileSystem(), service.settings.wal_dir, lambda: service.retained)
    for height in range(30):
        assert await found(service, logged, height)
    service.retained = list_segments(FileSystem(), service.settings.wal_dir)[3].start + 20_000
    give_back(FileSystem(), service.settings.wal_dir, 0, service.retained)
    for look in (logged, fresh):
        seen = [await found(service, look, height) for height in range(30)]
        gone = seen.count(None)
        assert 8 < gone < 20
        assert seen[:gone] == [None] * gone
        assert seen[gone:] == [[batch[1], batch[3]] for batch in batches[gone:]]


async def test_what_is_given_back_at_this_very_moment_is_not_found(
    service: BlockService, logged: LoggedBlocks
) -> None:
    """The log is given back before anybody is told."""
    await make_blocks(service, 20)
    assert await found(service, logged, 0)
    give_back(FileSystem(), service.settings.wal_dir, 0, service.store.wal_offset)
    assert [await found(service, logged, height) for height in range(20)] == [None] * 20


async def test_damage_is_not_taken_for_content(service: BlockService, logged: LoggedBlocks) -> None:
    await make_blocks(service, 3)
    (segment,) = list_segments(FileSystem(), service.settings.wal_dir)
    content = bytearray(segment.path.read_bytes())
    content[content.index(DATA) + 100] ^= 1
    with segment.path.open("r+b") as file:
        file.write(content)
    assert await found(service, logged, 0) is None


async def test_a_segment_is_read_once_for_all_of_its_blocks(
    service: BlockService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_blocks(service, 6)
    read: list[int] = []

    def count(payload: memoryview) -> object:
        read.append(len(payload))
        return read_outline(payload)

    monkeypatch.setattr("app.service.logged_blocks.read_outline", count)
    logged = LoggedBlocks(FileSystem(), service.settings.wal_dir, lambda: 0)
    for _ in range(3):
        for height in range(6):
            assert await found(service, logged, height)
    records = 3 * 6
    segments = len(list_segments(FileSystem(), service.settings.wal_dir))
    assert 6 <= len(read) <= records + 2 * segments
