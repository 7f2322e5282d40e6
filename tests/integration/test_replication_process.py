"""The replication process and what may befall it (protocol, sections 5 and 6)."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.replication.connection import advisory_key
from tests.integration.conftest import MakeService
from tests.support.database import end_connections, query, value
from tests.support.http_entries import (
    accepted,
    checkpoint,
    decoded,
    flush,
    json_entry,
    metric,
    post,
    refused,
)
from tests.support.postgres_cluster import Cluster
from tests.support.syscalls import attached
from tests.support.waiting import wait_for


def replication(client: httpx.Client) -> dict[str, Any]:
    """What `/readyz` says of replication; entries can be acknowledged all the while."""
    response = client.get("/readyz")
    assert response.status_code == 200, response.text
    part: dict[str, Any] = decoded(response)["parts"]["replication"]
    return part


def says(client: httpx.Client, state: str, detail: str) -> bool:
    part = replication(client)
    return part["state"] == state and detail in part.get("detail", "")


def command_ids(url: str) -> list[int]:
    return [row[0] for row in query(url, "SELECT command_id FROM engine_commands ORDER BY 1")]


def test_a_process_that_is_killed_is_restarted_and_nothing_is_lost_or_doubled(
    make_service: MakeService, database_url: str
) -> None:
    service = make_service().start()
    acknowledged: list[int] = []
    with service.client() as client:
        for round_number in range(1, 4):
            pid = service.replication_pid
            for _ in range(20):
                answer = accepted(post(client, *(json_entry() for _ in range(20))))
                acknowledged += range(answer["first_command_id"], answer["last_command_id"] + 1)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: says(client, "down", "ended with status -9"), "it is said in /readyz")
            wait_for(lambda: service.replication_pid != pid, "it is started again")  # noqa: B023
            assert metric(client, "ht_journal_replication_batch_failures_total") == round_number
        flush(client)
        assert replication(client) == {"state": "streaming"}
    assert command_ids(database_url) == acknowledged
    assert service.log.count("ended with status -9; restarting in") == 3


def test_the_pause_before_a_restart_doubles(make_service: MakeService) -> None:
    """It is killed each time as soon as it is there."""
    service = make_service().start()
    with service.client() as client:
        for pause in ("0.1", "0.2", "0.4"):
            os.kill(service.replication_pid, signal.SIGKILL)
            wait_for(lambda: f"restarting in {pause} s" in service.log, pause)  # noqa: B023
        flush(client)


def test_without_migrations_it_waits_and_says_so_and_goes_on_after_journal_migrate(
    make_service: MakeService, empty_database_url: str
) -> None:
    service = make_service(empty_database_url, AUTO_MIGRATE="false").start()
    with service.client() as client:
        answer = accepted(post(client, json_entry()))
        wait_for(lambda: says(client, "down", "run `journal migrate`"), "it says so")
        assert checkpoint(client)["replication"] == "down"
        assert "run `journal migrate`" in service.log
        command = "from app.cli import main; main()"
        subprocess.run(
            [sys.executable, "-c", command, "migrate", "--database-url", empty_database_url],
            check=True,
            capture_output=True,
        )
        assert flush(client)["wal_offset"] == answer["wal_offset"]
    assert command_ids(empty_database_url) == [answer["first_command_id"]]


def test_another_service_of_the_environment_keeps_it_out_until_it_is_gone(
    make_service: MakeService, database_url: str
) -> None:
    """The second one began a log of its own when it could not ask Postgres."""
    first = make_service().start()
    with first.client() as client:
        wait_for(lambda: replication(client)["state"] == "streaming", "it holds the lock")
    second = make_service(name="second")
    nowhere = "postgresql://postgres@127.0.0.1:1/postgres"
    second.start(DATABASE_URL=nowhere, ALLOW_NEW_WAL="true", SHUTDOWN_TIMEOUT_S=0)
    second.terminate()
    second.start()
    key = advisory_key("replication", "development")
    with first.client() as client, second.client() as other:
        accepted(post(other, json_entry()))
        wait_for(lambda: says(other, "down", f"holds advisory lock {key}"), "it says so")
        refused(other.post("/flush", params={"timeout_s": 0}), 50401, retriable=True)
        assert command_ids(database_url) == []
        accepted(post(client, json_entry()))
        flush(client)
        first.terminate()
        wait_for(lambda: says(other, "stopped", "as of the log"), "now it is not its environment")
    assert command_ids(database_url) == [1]


def test_the_progress_row_of_another_log_stops_it_and_ingest_goes_on(
    make_service: MakeService, database_url: str
) -> None:
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        before = flush(client)
    service.terminate()
    query(database_url, "UPDATE replication_progress SET wal_id = 'another'")
    rows = query(database_url, "SELECT * FROM replication_progress")
    service.start()
    with service.client() as client:
        entry = json_entry()
        accepted(post(client, entry))
        wait_for(lambda: says(client, "stopped", "the log another"), "it says so")
        assert client.get(f"/entries/{entry['request_uuid']}").json()["status"] == "durable"
        found = checkpoint(client)
        assert (found["replication"], found["wal_offset"]) == ("stopped", before["wal_offset"])
        refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
    assert command_ids(database_url) == [1]
    assert query(database_url, "SELECT * FROM replication_progress") == rows
    assert service.terminate() == 0


def test_a_progress_row_beyond_the_log_stops_it(
    make_service: MakeService, database_url: str
) -> None:
    """As when an older copy of the data directory was restored: the start is refused even."""
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        flush(client)
    service.terminate()
    query(database_url, "UPDATE replication_progress SET wal_offset = wal_offset + 1000")
    status, log = service.start_refused()
    assert status != 0
    assert "the progress row in Postgres" in log


@pytest.mark.parametrize("while_running", [True, False])
def test_a_database_restored_from_an_older_backup_gets_what_it_lacks(
    make_service: MakeService, cluster: Cluster, database_url: str, while_running: bool
) -> None:
    service = make_service().start()
    with service.client() as client:
        for _ in range(3):
            accepted(post(client, json_entry(order_id=1), json_entry(order_id=1)))
        older = flush(client)
        for _ in range(3):
            accepted(post(client, json_entry(order_id=2), json_entry(order_id=2)))
        newer = flush(client)
        if not while_running:
            service.terminate()
        query(database_url, "DELETE FROM engine_command_digests WHERE command_id > 6")
        query(database_url, "DELETE FROM engine_commands WHERE command_id > 6")
        query(
            database_url,
            "UPDATE replication_progress SET wal_offset = $1, last_command_id = $2",
            older["wal_offset"],
            older["last_command_id"],
        )
        end_connections(cluster, database_url)
        if not while_running:
            service.start()
        if while_running:
            wait_for(lambda: "the checkpoint goes back" in service.log, "the log says so")
        else:
            assert "Postgres has gone back" in service.log
    with service.client() as client:
        found = flush(client)
        wait_for(lambda: flush(client) == newer, "it is where it was before")
        assert found["environment"] == newer["environment"]
    assert command_ids(database_url) == list(range(1, 13))


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ("pread64", "wal/00000000000000000000.wal"),
        ("openat", "checkpoint.json"),
    ],
)
def test_a_log_that_can_not_be_read_is_read_again_later_and_ingest_goes_on(
    make_service: MakeService,
    cluster: Cluster,
    database_url: str,
    tmp_path: Path,
    call: str,
    path: str,
) -> None:
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        flush(client)
        pid = service.replication_pid
        file = service.data_dir / path
        fault = ("-P", str(file), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO")
        with attached(pid, tmp_path / "trace", *fault):
            # The checkpoint is read whenever it connects.
            end_connections(cluster, database_url)
            accepted(post(client, json_entry()))
            told = f"{file.name} can't be read: Input/output error"
            wait_for(lambda: says(client, "down", told), "it says so")
            assert checkpoint(client)["replication"] == "down"
            errors = metric(client, "ht_journal_replication_errors_total")
            wait_for(
                lambda: metric(client, "ht_journal_replication_errors_total") > errors + 1,
                "it is tried again and counted",
            )
            assert says(client, "down", told)
            newest = accepted(post(client, json_entry()))["last_command_id"]
        assert flush(client)["last_command_id"] == newest
        assert replication(client) == {"state": "streaming"}
        assert service.replication_pid == pid
    assert command_ids(database_url) == [1, 2, 3]
    assert service.log.count("Input/output error") == 1
    assert "Traceback" not in service.log


def test_a_lost_connection_is_noticed_while_there_is_nothing_to_do(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    """Its lock is lost with it: another service could take its place."""
    service = make_service().start()
    with service.client() as client:
        flush(client)
        errors = metric(client, "ht_journal_replication_errors_total")
        end_connections(cluster, database_url)
        wait_for(lambda: "connection to Postgres was lost" in service.log, "it is noticed")
        wait_for(
            lambda: metric(client, "ht_journal_replication_errors_total") > errors, "it is counted"
        )
        wait_for(lambda: replication(client)["state"] == "streaming", "it connects again")
    locks = """
        SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
        WHERE locktype = 'advisory' AND datname = current_database()
        """
    assert value(database_url, locks) == 1


def test_what_was_replicated_is_given_back_beyond_the_window(
    make_service: MakeService,
) -> None:
    service = make_service(DEDUP_WINDOW=10, WAL_SEGMENT_BYTES=1 << 20).start()
    with service.client() as client:
        for _ in range(8):
            accepted(post(client, *(json_entry(command_data="AYAA" * 20_000) for _ in range(10))))
            flush(client)
        wal = service.data_dir / "wal"
        wait_for(lambda: len(list(wal.glob("*.wal"))) <= 3, "segments are unlinked")
        assert metric(client, "ht_wal_hole_punch_bytes_total") > 0
