"""`journal wal repair` with a Postgres that answers: what it holds was durable, and is no tail."""

from pathlib import Path
from typing import Final

import pytest

from tests.integration.conftest import MakeService
from tests.support.foreign_wal import read_wal
from tests.support.http_entries import accepted, flush, json_entry, post
from tests.support.service import Service
from tests.support.table_audit import table_rows
from tests.support.wal_files import patch, snapshot

NOWHERE: Final = "postgresql:///postgres?host=/nowhere"


@pytest.fixture
def service(make_service: MakeService) -> Service:
    """A log of two records in Postgres, and one that it never saw; only Postgres tells of it."""
    service = make_service().start()
    with service.client() as client:
        for _ in range(2):
            accepted(post(client, json_entry()))
        flush(client)
    service.kill()
    service.start(DATABASE_URL=NOWHERE)
    with service.client() as client:
        accepted(post(client, json_entry()))
    service.kill()
    (service.data_dir / "checkpoint.json").unlink()
    return service


def break_record(service: Service, number: int) -> tuple[Path, int, int]:
    """Change the last byte of a record, counted from the genesis; its segment, offset and end."""
    record = list(read_wal(service.data_dir / "wal"))[number]
    patch(record.segment, record.end - 1, bytes([record.payload[-1] ^ 1]))
    return record.segment, record.offset, record.end


def test_a_tail_behind_what_postgres_holds_is_cut_and_all_it_holds_stays(
    service: Service, database_url: str
) -> None:
    segment, offset, _ = break_record(service, 3)
    result = service.command("wal", "repair", "--yes")
    assert result.returncode == 0, result.stderr
    assert f"is {offset} (the progress row in Postgres)" in result.stdout
    assert "could not be asked" not in result.stdout
    assert f"cut at offset {offset} and synced" in result.stdout
    assert [record.end for record in read_wal(segment.parent)][-1] == offset
    service.start()
    with service.client() as client:
        assert accepted(post(client, json_entry()))["first_command_id"] == 3
        flush(client)
    assert [row[0] for row in table_rows(database_url, "engine_commands")] == [1, 2, 3]


def test_a_record_that_postgres_holds_is_no_tail_though_nothing_follows_it(
    service: Service,
) -> None:
    segment, offset, end = break_record(service, 2)
    with segment.open("r+b") as file:
        file.truncate(end)
    before = snapshot(segment.parent)
    away = service.command("wal", "repair", "--yes", "--database-url", NOWHERE)
    assert away.returncode == 1
    assert "--without-postgres" in away.stderr
    assert snapshot(segment.parent) == before
    result = service.command("wal", "repair", "--yes", "--without-postgres")
    assert result.returncode == 1
    assert f"{segment.name}: offset {offset}" in result.stderr
    assert f"the progress row in Postgres shows that the log was durable up to {end}" in (
        result.stderr
    )
    assert snapshot(segment.parent) == before
