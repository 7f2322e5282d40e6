"""What the scan tells of a log does not depend on how deep it has to look into the records."""

from pathlib import Path

from app.model.entry import Entry
from app.wal.files import FileSystem
from app.wal.scan import Evidence, Scan, scan_log
from tests.support.block_service import BlockService
from tests.support.journal_entries import make_entry

WINDOW = 3
SHORT, LONG = b"\x01", b"\x01" * 20_000


def scanned(service: BlockService, replicated: int) -> Scan:
    evidence = Evidence(0, "nothing", replicated=replicated)
    wal_dir = service.settings.wal_dir
    return scan_log(FileSystem(), wal_dir, service.settings.environment, None, evidence, WINDOW)


def entry(data: bytes) -> Entry:
    return make_entry(command_data=data)


def tick(data: bytes) -> Entry:
    return make_entry(command_type="TickSnapshot", command_data=data)


async def test_replicated_records_are_told_from_blocks_and_counted_as_others_are(
    tmp_path: Path,
) -> None:
    service = BlockService(tmp_path / "data", wal_segment_bytes=64 * 1024)
    ends = []
    for data in (SHORT, LONG):
        for batch in ((tick(data), entry(data)), (entry(data), entry(data), entry(data))):
            await service.commit_all([batch])
            backlog = scanned(service, 0)
            assert backlog.fault is None
            assert backlog.blocks_end == service.store.wal_offset
            assert scanned(service, backlog.end) == backlog
            ends.append((backlog.blocks_end == backlog.end, backlog.entries))
    await service.close()
    assert ends == [(True, 2), (False, 5), (True, 7), (False, 10)]
