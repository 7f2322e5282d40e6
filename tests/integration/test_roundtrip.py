"""What a client sends is what the log holds and what Postgres gets, to the last byte and field."""

from itertools import count
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from app.model.entry import Entry
from app.wal.files import FileSystem
from app.wal.reader import SegmentReader
from app.wal.record import Batch, Genesis, decode_record
from app.wal.segments import list_segments
from tests.support import strategies
from tests.support.feed_audit import find_feed, journaled
from tests.support.foreign_wal import ForeignRecord, plain, read_wal
from tests.support.http_entries import MSGPACK, accepted, flush
from tests.support.journal_entries import make_full_entry
from tests.support.replay_process import ReplayProcess
from tests.support.service import Service
from tests.support.table_audit import assert_tables_hold
from tests.support.wire_forms import to_json, to_msgpack

EXAMPLES = 60
ENTRIES_A_REQUEST = 12

_numbers = count(1)
# Never the same twice, not even where hypothesis tries an example again.
_fresh_uuids = st.builds(lambda: UUID(int=next(_numbers)))
_requests = st.lists(strategies.entries(_fresh_uuids), min_size=1, max_size=ENTRIES_A_REQUEST)


@pytest.mark.timeout(600)
def test_any_valid_entry_survives_request_log_recovery_and_postgres_unchanged(
    tmp_path: Path, database_url: str
) -> None:
    sent: dict[int, Entry] = {}
    nowhere = f"postgresql:///postgres?host={tmp_path}"
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", ALLOW_NEW_WAL="true"
    ) as service:
        service.start(DATABASE_URL=nowhere, WAL_SEGMENT_BYTES=256 * 1024)
        with service.client() as client:

            @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
            @given(entries=_requests, in_json=st.booleans())
            def send(entries: list[Entry], in_json: bool) -> None:
                if in_json:
                    body = {"entries": [to_json(entry) for entry in entries]}
                    response = client.post("/entries", json=body)
                else:
                    items = b"".join(to_msgpack(entry) for entry in entries)
                    start = b"\x81\xa7entries" + bytes([0x90 | len(entries)])
                    response = client.post(
                        "/entries", content=start + items, headers={"content-type": MSGPACK}
                    )
                answer = accepted(response)
                assert answer["count"] == len(entries)
                sent.update(enumerate(entries, answer["first_command_id"]))

            send()
        service.kill()
        commands = journaled(service.data_dir / "wal")
        assert commands == {command_id: plain(entry) for command_id, entry in sent.items()}
        # Nothing has been replicated yet: all of it comes out of the recovered log.
        service.start()
        with service.client() as client:
            flush(client)
    assert_tables_hold(database_url, sent)


def test_a_reader_of_other_libraries_agrees_with_the_services_own_in_every_byte_and_field(
    tmp_path: Path, database_url: str
) -> None:
    feed = find_feed(tmp_path)
    with Service(
        tmp_path / "data", database_url, AUTO_MIGRATE="false", WAL_SEGMENT_BYTES=64 * 1024
    ) as service:
        service.start()
        with ReplayProcess(
            service.url, feed.path, tmp_path, "--batch", "7", "--limit", "2000"
        ) as replay:
            replay.summary()
        full = [make_full_entry() for _ in range(50)]
        with service.client(http2=True) as client:
            for entry in full:
                accepted(client.post("/entries", json={"entries": [to_json(entry)]}))
            durable = flush(client)["durable_offset"]
        wal_dir = service.data_dir / "wal"
        foreign = list(read_wal(wal_dir))
        own = list(_own_records(wal_dir))
        assert service.terminate() == 0
    assert len({record.segment for record in foreign}) > 5
    assert foreign[-1].end == durable
    assert [record[:3] for record in foreign] == [record[:3] for record in own]
    for record, (*_, decoded) in zip(foreign, own, strict=True):
        _assert_agree(record, decoded)
    commands = [entry for *_, batch in own if isinstance(batch, Batch) for entry in batch.commands]
    wanted = {entry.request_uuid: entry for entry in [*feed.entries[:2000], *full]}
    assert {entry.request_uuid: entry for entry in commands} == wanted
    assert len(commands) == len(wanted)


OwnRecord = tuple[Path, int, bytes, Genesis | Batch]


def _own_records(wal_dir: Path) -> list[OwnRecord]:
    files = FileSystem()
    found: list[OwnRecord] = []
    for segment in list_segments(files, wal_dir):
        reader = SegmentReader(files, segment)
        for frame in reader.frames(segment.start):
            record = decode_record(frame.payload)
            found.append((segment.path, frame.offset, bytes(frame.payload), record))
        assert reader.fault is None
        reader.close()
    return found


def _assert_agree(record: ForeignRecord, decoded: Genesis | Batch) -> None:
    content = dict(record.content)
    if isinstance(decoded, Genesis):
        assert content.pop("kind") == "genesis"
        assert content == {name: getattr(decoded, name) for name in decoded.__struct_fields__}
        return
    assert content.pop("kind") == "batch"
    assert content.pop("offset") == decoded.offset
    assert content.pop("first_command_id") == decoded.first_command_id
    assert content.pop("commands") == [plain(entry) for entry in decoded.commands]
    assert set(content) == {"header", "roots", "block_indices", "authority"}
    assert content.pop("block_indices") == decoded.block_indices
    for name, value in content.items():
        part = getattr(decoded, name)
        assert value == (None if part is None else asdict(part))
