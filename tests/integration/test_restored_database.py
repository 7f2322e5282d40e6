"""Postgres comes back as another than it was: replication resumes where it can, or stops and says.

Protocol, section 6: the progress row is the truth, as long as the log can go on behind it.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import end_connections, query
from tests.support.http_entries import (
    accepted,
    checkpoint,
    decoded,
    flush,
    json_entry,
    post,
    refused,
)
from tests.support.postgres_cluster import Cluster
from tests.support.postgres_proxy import proxied
from tests.support.service import Service
from tests.support.table_audit import table_rows
from tests.support.waiting import wait_for

MoveRow = Callable[[str], None]


def large() -> dict[str, Any]:
    return json_entry(command_data="AYAA" * 20_000)


def stopped(client: httpx.Client, database_url: str) -> str:
    """Wait until replication has stopped; why. Entries are acknowledged, nothing is inserted."""
    wait_for(lambda: checkpoint(client)["replication"] == "stopped", "replication stops")
    rows = table_rows(database_url, "engine_commands")
    accepted(post(client, json_entry()))
    refused(client.post("/flush", params={"timeout_s": 0.2}), 50401, retriable=True)
    response = client.get("/readyz")
    assert response.status_code == 200
    part = decoded(response)["parts"]["replication"]
    assert part["state"] == "stopped"
    assert table_rows(database_url, "engine_commands") == rows
    detail: str = part["detail"]
    return detail


@pytest.fixture
def move_row(cluster: Cluster, database_url: str) -> MoveRow:
    """Change the progress row, and end the connection that relies on it."""

    def change(assignment: str) -> None:
        query(database_url, f"UPDATE replication_progress SET {assignment}")
        end_connections(cluster, database_url)

    return change


def test_a_backup_from_before_what_the_log_still_has_stops_it_naming_the_missing_range(
    make_service: MakeService, database_url: str, move_row: MoveRow
) -> None:
    service = make_service(DEDUP_WINDOW=10, WAL_SEGMENT_BYTES=1 << 20).start()
    with service.client() as client:
        accepted(post(client, *(large() for _ in range(10))))
        older = flush(client)
        query(database_url, "CREATE TABLE backup AS SELECT * FROM engine_commands")
        first = service.data_dir / "wal" / f"{0:020}.wal"
        while first.exists():
            accepted(post(client, *(large() for _ in range(10))))
            newer = flush(client)
        query(database_url, "DELETE FROM engine_commands WHERE command_id > 10")
        move_row(f"wal_offset = {older['wal_offset']}, last_command_id = 10")
        for _ in range(2):  # while it runs, and at its next start
            with service.client() as asking:
                detail = stopped(asking, database_url)
                missing = re.search(r"the log from offset (\d+) to (\d+) was given back", detail)
                assert missing, detail
                assert int(missing[1]) == older["wal_offset"]
                assert older["wal_offset"] < int(missing[2]) <= newer["wal_offset"]
                assert "backup" in detail
            service.terminate()
            service.start()
    assert "Traceback" not in service.log


def test_a_row_beyond_the_log_stops_a_running_service_too(
    make_service: MakeService, database_url: str, move_row: MoveRow
) -> None:
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        flush(client)
        move_row("wal_offset = wal_offset + 1000")
        assert "this is an older copy of it" in stopped(client, database_url)
    assert service.terminate() == 0


def test_an_empty_database_in_place_of_the_old_one_gets_everything_from_a_whole_log(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, *(json_entry() for _ in range(5))))
        before = flush(client)
        rows = table_rows(database_url, "engine_commands")
        query(
            database_url, "TRUNCATE engine_commands, engine_command_digests, replication_progress"
        )
        end_connections(cluster, database_url)
        wait_for(lambda: "the checkpoint goes back" in service.log, "it is said")
        wait_for(lambda: flush(client) == before, "all is replicated again")
    assert table_rows(database_url, "engine_commands") == rows


def test_a_postgres_that_never_answers_holds_up_neither_start_nor_entries_nor_stop(
    tmp_path: Path, database_url: str
) -> None:
    with (
        proxied(database_url, tmp_path) as proxy,
        Service(
            tmp_path / "data", proxy.url, ALLOW_NEW_WAL="true", SHUTDOWN_TIMEOUT_S=1
        ) as service,
    ):
        proxy.hold()
        service.start()
        with service.client() as client:
            entry = json_entry()
            accepted(post(client, entry))
            assert client.get(f"/entries/{entry['request_uuid']}").json()["status"] == "durable"
            refused(client.get(f"/entries/{json_entry()['request_uuid']}"), 50302, retriable=True)
            refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
        assert service.terminate(30) == 0
        proxy.release()
        service.start()
        with service.client() as client:
            flush(client)
    assert len(table_rows(database_url, "engine_commands")) == 1
    assert "Traceback" not in service.log
