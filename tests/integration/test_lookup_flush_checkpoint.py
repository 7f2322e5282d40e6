"""`GET /entries/{request_uuid}`, `POST /flush`, `GET /checkpoint`."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import outage, query, value
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
from tests.support.service import Service
from tests.support.waiting import wait_for


def look_up(client: httpx.Client, uuid: str) -> dict[str, Any]:
    response = client.get(f"/entries/{uuid}")
    assert response.status_code == 200, response.text
    return decoded(response)


@pytest.fixture
def down(cluster: Cluster, database_url: str) -> Callable[[], Any]:
    """An outage of the test's own database, for as long as the `with` block lasts."""
    return lambda: outage(cluster, database_url)


def test_checkpoint_json_on_disk_is_the_checkpoint(
    client: httpx.Client, shared_service: Service
) -> None:
    accepted(post(client, json_entry()))
    flush(client)
    named = ("wal_id", "environment", "wal_offset", "last_command_id", "last_l2_seq")

    def equal() -> bool:
        on_disk = json.loads((shared_service.data_dir / "checkpoint.json").read_bytes())
        answer = checkpoint(client)
        return all(on_disk[name] == answer[name] for name in named)

    wait_for(equal, "the file equals the answer")


def test_the_checkpoint_says_how_far_postgres_is(
    client: httpx.Client, shared_database_url: str
) -> None:
    event = {"event_topic": "t", "event_data": "", "event_type": "E"}
    answer = accepted(post(client, json_entry(events=[{**event, "l2_sequence": 10**15}])))
    found = flush(client)
    assert found == checkpoint(client)
    assert found["wal_offset"] == found["durable_offset"] == answer["wal_offset"]
    assert found["last_command_id"] == answer["last_command_id"]
    assert found["last_l2_seq"] == 10**15
    assert found["unreplicated_bytes"] == 0
    assert (found["replication"], found["dead_letters"]) == ("streaming", 0)
    [row] = query(
        shared_database_url,
        "SELECT wal_id, wal_offset, last_command_id, last_l2_seq FROM replication_progress"
        " WHERE environment = $1",
        found["environment"],
    )
    assert row == tuple(
        found[name] for name in ("wal_id", "wal_offset", "last_command_id", "last_l2_seq")
    )


def test_flush_covers_what_was_acknowledged_before_it_and_its_rows_are_there(
    client: httpx.Client, shared_database_url: str
) -> None:
    for _ in range(5):
        answer = accepted(post(client, *(json_entry() for _ in range(100))))
        found = flush(client)
        assert found["wal_offset"] >= answer["wal_offset"]
        newest = value(shared_database_url, "SELECT max(command_id) FROM engine_commands")
        assert newest >= answer["last_command_id"]


class TestWithPostgresDown:
    """One service for the class, whose Postgres is gone since it started."""

    @pytest.fixture(scope="module")
    @staticmethod
    def replicated() -> list[dict[str, Any]]:
        return [json_entry() for _ in range(3)]

    @pytest.fixture(scope="module")
    @staticmethod
    def lonely(
        tmp_path_factory: pytest.TempPathFactory,
        cluster: Cluster,
        replicated: list[dict[str, Any]],
    ) -> Iterator[httpx.Client]:
        url = cluster.create_migrated()
        directory = tmp_path_factory.mktemp("lonely")
        service = Service(directory / "data", url, DEDUP_WINDOW=2)
        with service.start(), service.client() as client:
            for entry in replicated:
                accepted(post(client, entry))
            flush(client)
            with outage(cluster, url):
                wait_for(lambda: checkpoint(client)["replication"] == "down", "the loss is noticed")
                yield client
        cluster.drop(url)

    def test_entries_are_acknowledged_and_durable(self, lonely: httpx.Client) -> None:
        entry = json_entry()
        answer = accepted(post(lonely, entry))
        assert look_up(lonely, entry["request_uuid"]) == {
            "request_uuid": entry["request_uuid"],
            "command_id": answer["first_command_id"],
            "status": "durable",
            "block_height": None,
        }

    def test_flush_answers_504_in_time_and_says_why(self, lonely: httpx.Client) -> None:
        accepted(post(lonely, json_entry()))
        found = refused(lonely.post("/flush", params={"timeout_s": 0.3}), 50401, retriable=True)
        assert "replication is down" in found["detail"]

    def test_the_checkpoint_stays_where_postgres_was(
        self, lonely: httpx.Client, replicated: list[dict[str, Any]]
    ) -> None:
        accepted(post(lonely, json_entry()))
        found = checkpoint(lonely)
        assert found["last_command_id"] == len(replicated)
        assert found["unreplicated_bytes"] == found["durable_offset"] - found["wal_offset"] > 0

    def test_an_unknown_entry_is_503_since_only_postgres_could_know(
        self, lonely: httpx.Client
    ) -> None:
        refused(lonely.get(f"/entries/{uuid4()}"), 50302, retriable=True)

    def test_an_entry_beyond_the_window_is_503_since_only_postgres_could_know(
        self, lonely: httpx.Client, replicated: list[dict[str, Any]]
    ) -> None:
        accepted(post(lonely, json_entry(), json_entry()))
        refused(lonely.get(f"/entries/{replicated[0]['request_uuid']}"), 50302, retriable=True)

    def test_ready_all_the_same(self, lonely: httpx.Client) -> None:
        response = lonely.get("/readyz")
        assert response.status_code == 200
        assert response.json()["parts"]["replication"]["state"] == "down"


def test_an_entry_is_durable_then_replicated_then_known_by_postgres_alone(
    make_service: MakeService, down: Callable[[], Any]
) -> None:
    service = make_service(DEDUP_WINDOW=1).start()
    entry = json_entry()
    with service.client() as client:
        with down():
            command_id = accepted(post(client, entry))["first_command_id"]
            assert look_up(client, entry["request_uuid"])["status"] == "durable"
        flush(client)
        assert look_up(client, entry["request_uuid"])["status"] == "replicated"
        accepted(post(client, json_entry()))
        accepted(post(client, json_entry()))
        flush(client)
        found = look_up(client, entry["request_uuid"])
        assert (found["command_id"], found["status"]) == (command_id, "replicated")


def test_flush_answers_as_soon_as_postgres_is_back(
    make_service: MakeService, down: Callable[[], Any], database_url: str
) -> None:
    service = make_service().start()
    with service.client() as client:
        with down():
            answer = accepted(post(client, json_entry()))
            refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
        assert flush(client)["wal_offset"] >= answer["wal_offset"]
    assert value(database_url, "SELECT count(*) FROM engine_commands") == 1


def test_an_entry_that_postgres_refuses_is_a_dead_letter_and_the_others_go_on(
    make_service: MakeService, database_url: str, down: Callable[[], Any]
) -> None:
    """A constraint that the service does not know stands for any rule of a database's owner."""
    query(database_url, "ALTER TABLE engine_commands ADD CONSTRAINT small CHECK (order_id < 100)")
    service = make_service().start()
    good, bad = [json_entry(order_id=1) for _ in range(3)], json_entry(order_id=100)
    with service.client() as client:
        answer = accepted(post(client, good[0], good[1], bad, good[2]))
        found = flush(client)
        assert found["last_command_id"] == answer["last_command_id"]
        assert found["dead_letters"] == 1
        dead = look_up(client, bad["request_uuid"])
        assert dead["status"] == "dead_letter"
        assert dead["command_id"] == answer["first_command_id"] + 2
        assert {look_up(client, entry["request_uuid"])["status"] for entry in good} == {
            "replicated"
        }
        readiness = client.get("/readyz")
        assert readiness.status_code == 200
        replication = readiness.json()["parts"]["replication"]
        assert replication["state"] == "degraded"
        assert "1 dead letter" in replication["detail"]
        assert metric(client, "ht_journal_dead_letters_total") == 1
        assert [entry["command_id"] for entry in accepted(post(client, bad))["duplicates"]] == [
            dead["command_id"]
        ]
        with down():
            refused(client.get(f"/entries/{good[0]['request_uuid']}"), 50302, retriable=True)
    [row] = query(database_url, "SELECT request_uuid::text, sqlstate, error FROM dead_letters")
    assert row[:2] == (bad["request_uuid"], "23514")
    assert "small" in row[2]
    assert value(database_url, "SELECT count(*) FROM engine_commands") == 3
    service.terminate()
    service.start()
    with service.client() as client:
        assert look_up(client, bad["request_uuid"])["status"] == "dead_letter"
        assert checkpoint(client)["dead_letters"] == 1
        # Once an operator has dealt with it by hand, the log is what still has it.
        query(database_url, "DELETE FROM dead_letters")
        assert look_up(client, bad["request_uuid"])["status"] == "durable"
