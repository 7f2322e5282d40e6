"""Blocks over real sockets: at once after the acknowledgement, streams, content, the end."""

import json
import os
import signal
import socket
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx
import pytest
from hyperframe.frame import DataFrame, SettingsFrame, WindowUpdateFrame

from tests.integration.conftest import MakeService
from tests.support.database import outage
from tests.support.http_entries import accepted, flush, json_entry, post, refused
from tests.support.postgres_cluster import Cluster
from tests.support.raw_http import MAX_WINDOW, RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for
from tests.support.worker_memory import WorkerMemory

ABSENT_READERS = 60  # no more streams than a connection may have
EVENT = {"event_topic": "ticks", "event_type": "Tick", "event_data": b64encode(b"e" * 50).decode()}


def tick(**fields: Any) -> dict[str, Any]:
    return json_entry(command_type="TickSnapshot", **fields)


@contextmanager
def streamed(client: httpx.Client, query: str = "", **headers: str) -> Iterator[Iterator[int]]:
    """The heights of a stream's events, as they come."""
    with client.stream("GET", f"/blocks/stream{query}", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (int(line[4:]) for line in response.iter_lines() if line.startswith("id: "))


@pytest.fixture(scope="module")
def h2_client(shared_service: Service) -> Iterator[httpx.Client]:
    with shared_service.client(http2=True) as client:
        yield client


def test_a_block_can_be_read_the_moment_its_batch_is_acknowledged(
    client: httpx.Client, h2_client: httpx.Client
) -> None:
    for _ in range(20):
        sent = tick()
        answer = accepted(post(client, json_entry(), sent))
        height = answer["block_height"]
        block = h2_client.get(f"/blocks/{height}").json()
        assert block == client.get("/blocks/latest").json()
        assert block["first_command_id"] == answer["last_command_id"]
        (command,) = client.get(f"/blocks/{height}/commands?content=true").json()["commands"]
        assert command["request_uuid"] == sent["request_uuid"]
        assert command["command_data"] == sent["command_data"]
        proof = client.get("/proofs/inclusion", params={"request_uuid": sent["request_uuid"]})
        assert proof.json()["root"] == block["command_root"]


@pytest.mark.parametrize("http2", [False, True])
def test_a_stream_brings_each_block_and_goes_on_where_it_was(
    shared_service: Service, client: httpx.Client, http2: bool
) -> None:
    first = accepted(post(client, tick()))["block_height"]
    with shared_service.client(http2=http2) as reader:
        with streamed(reader, f"?after={first}") as heights:
            for height in range(first + 1, first + 6):
                assert accepted(post(client, tick()))["block_height"] == height
                assert next(heights) == height
        missed = [accepted(post(client, tick()))["block_height"] for _ in range(3)]
        with streamed(reader, "?after=0", **{"last-event-id": str(first + 5)}) as heights:
            assert [next(heights) for _ in range(3)] == missed


def test_only_the_head_of_a_stream_can_be_had(client: httpx.Client) -> None:
    response = client.head("/blocks/stream")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


def test_readers_that_read_nothing_cost_the_service_nothing_and_miss_nothing(
    make_service: MakeService,
) -> None:
    """Their windows are closed: what is sent to them would have to wait in the service."""
    service = make_service().start()
    closed = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}
    with (
        service.client() as client,
        RawHttp2(service.port, closed, connection_window=MAX_WINDOW - 65_535) as absent,
    ):
        for _ in range(ABSENT_READERS):
            stream, headers = absent.headers("GET", "/blocks/stream", end=True)
            absent.send(headers)
        accepted(post(client, tick()))
        (event,) = read_events(service, 1)
        memory = WorkerMemory(service.worker_pid)
        for _ in range(1000):
            latest = accepted(post(client, tick()))["block_height"]
        assert read_events(service, latest + 1)[-1].startswith(f"event: block\nid: {latest}\n")
        # The store keeps a little meanwhile, too.
        assert memory.extra_bytes < ABSENT_READERS * len(event) * 1000 / 2
        absent.send(WindowUpdateFrame(stream, window_increment=MAX_WINDOW).serialize())
        received = b""
        for frame in absent.frames():
            if isinstance(frame, DataFrame):
                received += frame.data
                if f"id: {latest}\n".encode() in received:
                    break
    assert received.count(b"event: block") == latest + 1
    assert service.terminate() == 0


def read_events(service: Service, count: int) -> list[str]:
    """The first `count` blocks of the stream, as their events came."""
    received = ""
    with service.client() as reader, reader.stream("GET", "/blocks/stream") as response:
        for text in response.iter_text():
            received += text
            events = received.split("\n\n")[1:-1]
            if len(events) >= count:
                return events
    raise AssertionError(f"the stream ended after {len(received)} characters")


@pytest.mark.parametrize("http2", [False, True])
def test_open_streams_end_at_once_when_the_service_stops(
    make_service: MakeService, http2: bool
) -> None:
    service = make_service().start()
    with (
        service.client(http2=http2) as client,
        socket.create_connection(("127.0.0.1", service.port)) as absent,
    ):
        absent.sendall(b"GET /blocks/stream HTTP/1.1\r\nhost: journal\r\n\r\n")
        with streamed(client) as heights:
            with service.client() as writer:
                accepted(post(writer, tick()))
            assert next(heights) == 0
            started = monotonic()
            os.kill(service.pid, signal.SIGTERM)
            assert list(heights) == []
            assert monotonic() - started < 5
    assert service.wait(20) == 0


def test_content_comes_from_postgres_once_the_log_is_given_back(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service(DEDUP_WINDOW=1, WAL_SEGMENT_BYTES=64 * 1024).start()
    data = b64encode(b"\x01" * 50_000).decode()
    sent = [tick(command_data=data, events=[EVENT, EVENT]), tick(command_data=data)]
    with service.client() as client:
        accepted(post(client, *sent))
        path = "/blocks/0/commands?content=true"
        logged = client.get(path)
        for _ in range(3):
            for _ in range(20):
                accepted(post(client, json_entry(command_data=data)))
            flush(client)  # the log is given back up to where a transaction of replication ended
        first = service.data_dir / "wal" / f"{0:020}.wal"
        wait_for(lambda: not first.exists(), "the log is given back")
        from_postgres = client.get(path)
        assert from_postgres.content == logged.content
        from_log = logged.json()
        assert [b64decode(each["command_data"]) for each in from_log["commands"]] == [
            b"\x01" * 50_000
        ] * 2
        assert (
            from_log["commands"][0]["events"]
            == [{"event_key": None, "l2_sequence": None, **EVENT}] * 2
        )
        with outage(cluster, database_url):
            problem = refused(client.get(path), 50304, retriable=True)
            assert "block 0" in problem["detail"]
            assert client.get("/blocks/0/commands").status_code == 200
            latest = accepted(post(client, tick()))["block_height"]
            assert client.get(f"/blocks/{latest}/commands?content=true").status_code == 200
        wait_for(lambda: client.get(path).status_code == 200, "Postgres is asked again")


def test_blocks_are_the_same_after_a_kill(make_service: MakeService) -> None:
    service = make_service().start()
    with service.client() as client:
        for _ in range(30):
            accepted(post(client, tick(events=[EVENT]), json_entry()))
        before = client.get("/blocks?limit=1000").content
        entity_tag = client.get("/blocks/7").headers["etag"]
        service.kill()
        service.start()
        assert client.get("/blocks?limit=1000").content == before
        again = client.get("/blocks/7", headers={"if-none-match": entity_tag})
        assert again.status_code == 304
        assert len(json.loads(before)["blocks"]) == 30
