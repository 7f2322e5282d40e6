"""How the service ends: drained, in a hurry, or because something is wrong."""

import asyncio
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import monotonic
from uuid import UUID

import httpx
import psutil
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import outage, query, value
from tests.support.ends import await_ends
from tests.support.http_entries import (
    MSGPACK,
    accepted,
    json_entry,
    msgpack_entry,
    packed,
    post,
    refused,
)
from tests.support.postgres_cluster import Cluster
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.support.wal_files import read_commands


def count(url: str) -> int:
    number: int = value(url, "SELECT count(*) FROM engine_commands")
    return number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_replicates_all_that_was_acknowledged_and_exits_0(
    make_service: MakeService, database_url: str, number: signal.Signals
) -> None:
    service = make_service(FLUSH_INTERVAL_MS=60_000, REPLICATION_BATCH_SIZE=100_000).start()
    with service.client() as client:
        for _ in range(5):
            accepted(post(client, *(json_entry() for _ in range(100))))
        assert count(database_url) == 0
        os.kill(service.pid, number)
        assert service.wait() == 0
    assert count(database_url) == 500


@pytest.mark.parametrize(
    ("http2", "ctrl_c"), [(False, False), (True, False), (False, True)], ids=["h1", "h2", "ctrl-c"]
)
def test_while_draining_open_connections_get_503_with_the_reason(
    make_service: MakeService, cluster: Cluster, database_url: str, http2: bool, ctrl_c: bool
) -> None:
    """Postgres is away, so that the drain takes as long as it may.

    Ctrl-C at a terminal reaches every process of the group; whose turn it is first is chance.
    """
    service = make_service(SHUTDOWN_TIMEOUT_S=3).start()
    with service.client(http2=http2) as client, outage(cluster, database_url):
        accepted(post(client, json_entry()))
        everyone = [service.replication_pid, service.worker_pid, service.pid]
        group = [pid for pid in everyone if os.getpgid(pid) == os.getpgid(service.pid)]
        started = monotonic()
        for pid in group if ctrl_c else [service.pid]:
            os.kill(pid, signal.SIGINT if ctrl_c else signal.SIGTERM)
        refusal = wait_for(lambda: not_accepted(client), "entries are refused", 3)
        assert "shutting down" in refused(refusal, 50301, retriable=True)["detail"]
        assert client.get("/healthz").status_code == 200
        readiness = client.get("/readyz")
        assert readiness.status_code == 503
        assert readiness.json()["parts"]["wal"]["state"] == "shutting down"
        assert service.wait() == 0
        assert monotonic() - started > 2.5
    # The connection was still open: the service did not wait for its client, nor was it killed. The
    # supervisor's own message can't tell: it may take a worker that has just ended for one that
    # hangs.
    assert "app.main: stopped" in service.log
    assert "Traceback" not in service.log
    assert "Unexpected exit" not in service.log


def not_accepted(client: httpx.Client) -> httpx.Response | None:
    response = post(client, json_entry())
    return None if response.status_code == 200 else response


def test_what_is_under_way_when_the_stop_comes_is_acknowledged_or_refused_and_never_lost(
    make_service: MakeService, database_url: str
) -> None:
    service = make_service().start()
    acknowledged: set[int] = set()
    refusals: list[httpx.Response] = []

    async def send_until_refused(client: httpx.AsyncClient) -> None:
        headers = {"content-type": MSGPACK, "accept": MSGPACK}
        while True:
            body = packed(*(msgpack_entry() for _ in range(20)))
            try:
                response = await client.post("/entries", content=body, headers=headers)
            except httpx.TransportError:
                return  # the connection was closed, gracefully or not: nothing is promised
            if response.status_code != 200:
                refusals.append(response)
                return
            answer = accepted(response)
            acknowledged.update(range(answer["first_command_id"], answer["last_command_id"] + 1))
            if answer["first_command_id"] == 1001:
                os.kill(service.pid, signal.SIGTERM)

    async def run() -> None:
        async with httpx.AsyncClient(
            base_url=service.url, http1=False, http2=True, timeout=30, trust_env=False
        ) as client:
            await asyncio.gather(*(send_until_refused(client) for _ in range(20)))

    asyncio.run(run())
    assert service.wait() == 0
    for refusal in refusals:
        refused(refusal, 50301, retriable=True)
    rows = query(database_url, "SELECT command_id FROM engine_commands")
    assert acknowledged <= {row[0] for row in rows}


def test_postgres_out_of_reach_ends_the_drain_at_its_limit_and_nothing_is_lost(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service(SHUTDOWN_TIMEOUT_S=2).start()
    with outage(cluster, database_url):
        with service.client() as client:
            accepted(post(client, json_entry()))
        started = monotonic()
        assert service.terminate() == 0
        assert 1.5 < monotonic() - started < 15
    assert "replication behind" in service.log
    assert count(database_url) == 0
    service.start(SHUTDOWN_TIMEOUT_S=60)
    assert service.terminate() == 0
    assert count(database_url) == 1


def test_postgres_out_of_reach_delays_nothing_where_all_is_replicated(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service(SHUTDOWN_TIMEOUT_S=60).start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        assert client.post("/flush").status_code == 200
    with outage(cluster, database_url):
        wait_for(lambda: "is down, retrying" in service.log, "the loss is noticed")
        started = monotonic()
        assert service.terminate() == 0
        assert monotonic() - started < 20


def test_a_second_signal_stops_at_once(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service(SHUTDOWN_TIMEOUT_S=600).start()
    with outage(cluster, database_url):
        with service.client() as client:
            accepted(post(client, json_entry()))
        os.kill(service.pid, signal.SIGTERM)
        wait_for(lambda: "draining" in service.log, "it waits for replication")
        started = monotonic()
        os.kill(service.pid, signal.SIGTERM)
        service.wait(20)
        assert monotonic() - started < 30
    service.start()
    assert service.terminate() == 0
    assert count(database_url) == 1


def test_a_worker_that_is_killed_ends_the_service_with_a_failure_and_replication_within_a_second(
    make_service: MakeService,
) -> None:
    service = make_service().start()
    with service.client() as client:
        assert client.post("/flush").status_code == 200
    replication, worker = psutil.Process(service.replication_pid), service.worker_pid
    os.kill(worker, signal.SIGKILL)
    await_ends([replication], timeout_s=1)
    assert service.wait(20) != 0
    service.start()


def test_a_supervisor_that_is_killed_takes_the_worker_along_once_it_has_drained(
    make_service: MakeService, database_url: str
) -> None:
    service = make_service(FLUSH_INTERVAL_MS=60_000).start()
    worker = psutil.Process(service.worker_pid)
    with service.client() as client:
        accepted(post(client, json_entry()))
        # Neither an idle connection nor a stream without an end keeps it.
        with service.client() as reader, reader.stream("GET", "/blocks/stream") as stream:
            assert stream.status_code == 200
            os.kill(service.pid, signal.SIGKILL)
            await_ends([worker])
    assert count(database_url) == 1
    service.wait()
    service.start()


def test_a_second_service_on_the_same_directory_is_refused_in_a_clear_line(
    make_service: MakeService,
) -> None:
    first = make_service().start()
    second = make_service(name="data")
    second.log_path = first.log_path.with_name("second.log")
    status, log = second.start_refused()
    assert status == 1
    assert "data/wal is in use by another process" in log
    assert "Traceback" not in log
    with first.client() as client:
        accepted(post(client, json_entry()))


def test_of_two_services_that_start_at_once_on_an_empty_directory_one_serves(
    make_service: MakeService, database_url: str
) -> None:
    services = [make_service(), make_service()]
    services[1].log_path = services[0].log_path.with_name("second.log")
    both = Barrier(len(services))

    def starts(service: Service) -> bool:
        both.wait(10)
        return service.starts()

    with ThreadPoolExecutor(len(services)) as threads:
        started = list(threads.map(starts, services))
    assert sorted(started) == [False, True]
    serving, other = services[started.index(True)], services[started.index(False)]
    assert other.wait() == 1
    assert "data/wal is in use by another process" in other.log
    assert "Traceback" not in other.log
    entry = json_entry()
    with serving.client() as client:
        assert accepted(post(client, entry))["last_command_id"] == 1
    assert serving.terminate() == 0
    assert read_commands(serving.data_dir / "wal") == {1: UUID(entry["request_uuid"])}
    assert not list(serving.data_dir.rglob("*.tmp"))
    assert count(database_url) == 1


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("MAX_ENTRIES", "0", "greater than or equal to 1"),
        ("PORT", "70000", "less than or equal to 65535"),
        ("WAL_TAIL", "lenient", "'strict' or 'tolerant'"),
        ("DATABASE_URL", "mysql://", "postgresql://"),
        ("ENVIRONMENT", "a b", "pattern"),
        ("HOST", "203.0.113.1", "loopback"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(
    make_service: MakeService, name: str, text: str, allowed: str
) -> None:
    status, log = make_service().start_refused(**{name: text})
    assert status == 2
    assert log.count("\n") == 1
    assert name in log
    assert text in log
    assert allowed in log


def test_a_port_that_is_taken_stops_the_start_with_one_line(
    make_service: MakeService, shared_service: Service
) -> None:
    """The server underneath would share it, and two journals would take turns at answering."""
    status, log = make_service().start_refused(PORT=shared_service.port)
    assert status == 2
    assert log.count("\n") == 1
    assert f"JOURNAL_PORT='{shared_service.port}'" in log
    assert "in use" in log
