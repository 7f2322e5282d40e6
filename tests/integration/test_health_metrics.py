"""`/healthz`, `/readyz`, `/metrics`: what they say while starting, serving and short of disk."""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import MakeService
from tests.support.http_entries import (
    accepted,
    decoded,
    durable_offset,
    flush,
    json_entry,
    metric,
    post,
    refused,
)
from tests.support.service import Service
from tests.support.small_volume import FileSystemKind, small_volume
from tests.support.waiting import wait_for

MIB = 1 << 20
# Protocol, section 7, less the blocks.
TYPES = {
    "ht_journal_queue_latency_seconds": "histogram",
    "ht_journal_batch_size": "histogram",
    "ht_journal_wal_append_seconds": "histogram",
    "ht_journal_wal_batches": "counter",
    "ht_journal_wal_entries": "counter",
    "ht_journal_wal_replay_entries": "counter",
    "ht_journal_wal_io_uring_fallbacks": "counter",
    "ht_journal_replication_backlog": "gauge",
    "ht_journal_replication_chunks": "counter",
    "ht_journal_replication_errors": "counter",
    "ht_journal_replication_batch_failures": "counter",
    "ht_journal_postgres_insert_seconds": "histogram",
    "ht_wal_file_size_bytes": "gauge",
    "ht_wal_checkpoint_offset_bytes": "gauge",
    "ht_wal_unreplicated_bytes": "gauge",
    "ht_wal_hole_punch_bytes": "counter",
    "ht_wal_volume_total_bytes": "gauge",
    "ht_wal_volume_used_bytes": "gauge",
    "ht_wal_volume_avail_bytes": "gauge",
    "ht_wal_volume_usage_pct": "gauge",
    "ht_journal_fdatasync_seconds": "histogram",
    "ht_journal_rejected": "counter",
    "ht_journal_duplicates": "counter",
    "ht_journal_queue_entries": "gauge",
    "ht_replication_lag_seconds": "gauge",
    "ht_journal_dead_letters": "counter",
}


def readiness(client: httpx.Client) -> tuple[int, dict[str, str]]:
    """The status, and the state of each part."""
    response = client.get("/readyz")
    answer = decoded(response)
    assert answer["ready"] is (response.status_code == 200)
    return response.status_code, {name: part["state"] for name, part in answer["parts"].items()}


def test_ready_names_each_part_and_its_state(client: httpx.Client) -> None:
    flush(client)
    parts = {"wal": "ok", "disk": "ok", "replication": "streaming"}
    parts |= {"commitments": "ok", "signing": "off"}
    assert readiness(client) == (200, parts)
    assert decoded(client.get("/healthz")) == {"status": "ok"}


def test_every_metric_is_there_with_its_type(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {family.name: family.type for family in text_string_to_metric_families(response.text)}
    assert found.items() >= TYPES.items()
    for name in (name for name, kind in TYPES.items() if kind == "counter"):
        assert f"# TYPE {name}_total counter" in response.text


def test_metrics_of_the_log_move_with_every_batch(client: httpx.Client) -> None:
    names = {
        "ht_journal_wal_batches_total": 1,
        "ht_journal_wal_entries_total": 3,
        "ht_journal_batch_size_count": 1,
        "ht_journal_batch_size_sum": 3,
        "ht_journal_queue_latency_seconds_count": 1,
        "ht_journal_wal_append_seconds_count": 1,
        "ht_journal_fdatasync_seconds_count": 1,
    }
    before = {name: metric(client, name) for name in names}
    accepted(post(client, *(json_entry() for _ in range(3))))
    assert {name: metric(client, name) - before[name] for name in names} == names
    for name in ("ht_journal_wal_append_seconds_sum", "ht_journal_fdatasync_seconds_sum"):
        assert 0 < metric(client, name) < 60


def test_metrics_of_replication_move_with_every_transaction(client: httpx.Client) -> None:
    names = ("ht_journal_replication_chunks_total", "ht_journal_postgres_insert_seconds_count")
    flush(client)
    before = {name: metric(client, name) for name in names}
    accepted(post(client, json_entry()))
    flush(client)
    for name in names:
        assert metric(client, name) == before[name] + 1
    assert metric(client, "ht_wal_file_size_bytes") == durable_offset(client)
    assert metric(client, "ht_wal_checkpoint_offset_bytes") == durable_offset(client)
    for name in (
        "ht_wal_unreplicated_bytes",
        "ht_journal_replication_backlog",
        "ht_replication_lag_seconds",
        "ht_journal_queue_entries",
    ):
        assert metric(client, name) == 0


def test_metrics_of_the_volume_are_those_of_the_file_system(
    client: httpx.Client, shared_service: Service
) -> None:
    status = os.statvfs(shared_service.data_dir / "wal")
    total = metric(client, "ht_wal_volume_total_bytes")
    assert total == status.f_blocks * status.f_frsize
    used = metric(client, "ht_wal_volume_used_bytes")
    assert 0 < used < total
    assert 0 < metric(client, "ht_wal_volume_avail_bytes") < total
    assert metric(client, "ht_wal_volume_usage_pct") == pytest.approx(100 * used / total, rel=0.1)


def test_http_metrics_are_labelled_by_route_template_post_entries_included(
    client: httpx.Client,
) -> None:
    def count(handler: str, method: str, status: str) -> float:
        labels = {"handler": handler, "method": method, "status": status}
        return metric(client, "http_requests_total", **labels)

    routes = [
        ("/entries", "POST", "2xx"),
        ("/entries", "POST", "4xx"),
        ("/entries/{request_uuid}", "GET", "4xx"),
        ("/checkpoint", "GET", "2xx"),
    ]
    before = [count(*route) for route in routes]
    accepted(post(client, json_entry()))
    refused(post(client, {}), 42201)
    refused(client.get(f"/entries/{json_entry()['request_uuid']}"), 40402)
    client.get("/checkpoint")
    assert [count(*route) for route in routes] == [number + 1 for number in before]
    text = client.get("/metrics").text
    assert not re.search(r'handler="/entries/[0-9a-f]{8}-', text)
    name = "http_request_duration_seconds_count"
    assert metric(client, name, handler="/entries", method="POST") > 0


def test_what_is_wrong_inside_is_a_problem_too_and_names_nothing_internal(
    make_service: MakeService,
) -> None:
    """A log that is moved away under the service takes its volume's numbers along."""
    service = make_service().start()
    with service.client() as client:
        (service.data_dir / "wal").rename(service.data_dir / "moved")
        found = refused(client.get("/metrics"), 50001)
        assert "moved" not in str(found)
        assert "wal" not in str(found)
        assert client.get("/healthz").status_code == 200
    assert "FileNotFoundError" in service.log


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def is_alive(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def silent_address() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield f"postgresql://postgres@{host}:{port}/postgres"


def test_while_starting_it_is_alive_but_not_ready_and_refuses_entries(
    make_service: MakeService, silent_address: str
) -> None:
    service = make_service(silent_address, ALLOW_NEW_WAL="true", SHUTDOWN_TIMEOUT_S=0)
    service.port = free_port()
    service.launch()
    wait_for(lambda: is_alive(service), "the service listens")
    with service.client() as client:
        assert client.get("/healthz").status_code == 200
        status, parts = readiness(client)
        assert status == 503
        assert parts["wal"] == "starting"
        found = refused(post(client, json_entry()), 50301, retriable=True)
        assert "starting" in found["detail"]
        for response in (
            client.get("/checkpoint"),
            client.post("/flush"),
            client.get(f"/entries/{json_entry()['request_uuid']}"),
        ):
            assert "starting" in refused(response, 50301, retriable=True)["detail"]
        assert client.get("/metrics").status_code == 200
        wait_for(lambda: readiness(client)[0] == 200, "it goes on without Postgres")
        accepted(post(client, json_entry()))


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    with small_volume(tmp_path, FileSystemKind.TMPFS, 4) as volume:
        yield volume


def test_a_full_disk_answers_507_writes_nothing_and_recovers_by_itself(
    make_service: MakeService, volume: Path
) -> None:
    service = make_service(
        name="volume/data", WAL_SEGMENT_BYTES=64 * 1024, LOG_LEVEL="info"
    ).start()
    ballast = volume / "ballast"
    large = json_entry(command_data="AYAA" * 50_000)
    with service.client() as client:
        accepted(post(client, json_entry()))
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        before = durable_offset(client)
        found = refused(post(client, large), 50701, retriable=True)
        assert "room" in found["detail"]
        assert durable_offset(client) == before
        assert readiness(client) == (503, {**readiness(client)[1], "disk": "full"})
        assert client.get("/healthz").status_code == 200
        assert metric(client, "ht_journal_rejected_total", reason="disk_full") == 1
        ballast.unlink()
        assert readiness(client)[0] == 200
        answer = accepted(post(client, large))
        assert answer["duplicates"] == []
        flush(client)
    service.terminate()
    service.start()
    with service.client() as client:
        [duplicate] = accepted(post(client, large))["duplicates"]
        assert duplicate["command_id"] == answer["first_command_id"]
