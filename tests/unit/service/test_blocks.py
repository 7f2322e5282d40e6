"""A commitment store without room: 507 until it is opened anew and caught up from the log."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from rocksdict import Rdict

from app.chain import rocks
from app.chain.header import Header, block_hash
from app.chain.store import CommitmentStore
from app.errors import DiskFull
from app.model.entry import Entry
from tests.support.block_chain import make_delegation
from tests.support.block_service import BlockService
from tests.support.foreign_wal import read_wal
from tests.support.running_writer import entry


class Volume:
    """Gives the real database no room to open in or to write to, when told so.

    A write that `lands` is in the database although it was refused, as RocksDB allows.
    """

    def __init__(self) -> None:
        self.opens = self.writes = True
        self.lands = False
        self.opened = 0

    def open(self, *arguments: Any) -> "Database":
        self.opened += 1
        if not self.opens:
            raise no_space()
        return Database(Rdict(*arguments), self)


class Database:
    """A real database whose writes need room on a volume."""

    def __init__(self, database: Rdict, volume: Volume) -> None:
        self._database, self._volume = database, volume

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def write(self, *arguments: Any) -> None:
        if self._volume.writes or self._volume.lands:
            self._database.write(*arguments)
        if not self._volume.writes:
            raise no_space()


def no_space() -> Exception:
    return Exception("IO error: No space left on device: While appending to file: 000004.log")


def tick(number: int) -> Entry:
    return entry(number, command_type="TickSnapshot")


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Volume:
    volume = Volume()
    monkeypatch.setattr(rocks, "Rdict", volume.open)
    return volume


@pytest.fixture
async def service(tmp_path: Path, volume: Volume) -> AsyncIterator[BlockService]:
    running = BlockService(tmp_path / "data")
    yield running
    await running.close()


def commitments(service: BlockService) -> str:
    return service.journal.readiness()[1]["commitments"]["state"]


def logged(service: BlockService) -> list[Header]:
    """The headers that the log holds, as another reader finds them."""
    contents = [record.content for record in read_wal(service.settings.wal_dir)]
    return [Header(**each["header"]) for each in contents if each.get("header")]


def log_bytes(service: BlockService) -> list[bytes]:
    return [path.read_bytes() for path in sorted(service.settings.wal_dir.glob("*.wal"))]


def covering(store: CommitmentStore, number: int) -> tuple[int, int | None] | None:
    """The leaf of a command and the block that appended it."""
    found = store.leaf_of(UUID(int=number).bytes)
    return None if found is None else (found[0], store.height_of_leaf(found[0]))


async def run_out_of_room(service: BlockService, volume: Volume) -> None:
    """Journal block 0; then block 1, with a new authority, which the store has no room for."""
    await service.commit(tick(1))
    assert commitments(service) == "ok"
    service.sign()
    volume.writes = False
    acknowledged = await service.commit(tick(2), entry(3), tick(4))
    assert (acknowledged.first_command_id, acknowledged.last_command_id) == (2, 4)
    assert acknowledged.block_height == 1
    assert commitments(service) == "behind"
    assert service.store.state.height == 1
    assert [header.batch_seq for header in logged(service)] == [0, 1]
    assert service.failure is None


async def check_refused(service: BlockService, volume: Volume) -> None:
    """Each batch asks for the store anew, in vain: 507, and nothing of it is written."""
    held, opened = log_bytes(service), volume.opened
    refused = await service.outcomes([(tick(5),), (entry(6),)])
    assert all(isinstance(each, DiskFull) for each in refused), refused
    assert volume.opened == opened + 2
    assert log_bytes(service) == held
    assert commitments(service) == "behind"
    again = await service.commit(tick(2))  # what is durable is still known
    assert (again.count, again.first_command_id, again.duplicates[0].command_id) == (1, None, 2)
    assert service.failure is None


async def check_goes_on(service: BlockService) -> None:
    """With room, the next batch finds the store caught up, and its block follows."""
    next_one = await service.commit(tick(5), entry(6))
    assert (next_one.first_command_id, next_one.block_height) == (5, 2)
    assert commitments(service) == "ok"
    headers, store = logged(service), service.store
    blocks = store.blocks(None, 10, descending=False)
    assert [block.header for block in blocks] == headers
    assert [header.batch_seq for header in headers] == [0, 1, 2]
    hashes = [block_hash(header) for header in headers]
    assert [block.block_hash for block in blocks] == hashes
    assert [header.prev_block_hash for header in headers[1:]] == hashes[:-1]
    assert [(each.first_command_id, each.last_command_id) for each in blocks] == [
        (1, 1),
        (2, 4),
        (5, 5),
    ]
    covered = {number: covering(store, number) for number in range(1, 7)}
    assert covered == {1: (0, 0), 2: (1, 1), 3: None, 4: (2, 1), 5: (3, 2), 6: None}
    assert [service.producer.height_of(UUID(int=n).bytes) for n in (1, 2, 4, 5)] == [0, 1, 1, 2]
    assert store.authorities() == [make_delegation()]
    assert service.failure is None


async def test_a_store_without_room_is_opened_anew_and_caught_up_before_the_next_batch(
    service: BlockService, volume: Volume
) -> None:
    await run_out_of_room(service, volume)
    before = service.store
    await check_refused(service, volume)  # it opens, and can't be caught up
    volume.opens = False
    await check_refused(service, volume)
    volume.opens = volume.writes = True
    await check_goes_on(service)
    assert service.store is not before


async def test_a_write_that_was_refused_but_is_in_the_store_is_not_applied_twice(
    service: BlockService, volume: Volume
) -> None:
    volume.lands = True
    await run_out_of_room(service, volume)
    volume.opens = False
    await check_refused(service, volume)
    volume.opens = volume.writes = True
    await check_goes_on(service)
