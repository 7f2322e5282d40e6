"""Clients that leave at the wrong moment, or never read: nobody else notices.

Those that never finish are in `tests/attack`.
"""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
import psutil
import pytest

from tests.support.foreign_wal import read_wal
from tests.support.http_entries import JSON, accepted, json_entry, post
from tests.support.postgres_cluster import Cluster
from tests.support.raw_http import RawConnection, RawHttp2
from tests.support.service import Service
from tests.support.syscalls import Syscall, holding, read_trace
from tests.support.waiting import wait_for

CLIENTS: Final = 20
BLOCKS: Final = 900
READERS: Final = 40
FEW_BYTES: Final = 12 << 20
_RESET_AT_ONCE: Final = struct.pack("ii", 1, 0)

Leave = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    url = cluster.create_migrated()
    yield url
    cluster.drop(url)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("leaving") / "data"
    settings = {"MAX_BATCH_SIZE": 1, "LOG_LEVEL": "info", "WAL_SYNC": "fdatasync"}
    with Service(directory, url, **settings) as service:
        yield service.start()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Whatever is done meanwhile: nothing goes wrong in the service, and it keeps nothing open."""
    with service.client() as client:
        accepted(post(client, json_entry()))
        worker = psutil.Process(service.worker_pid)
        before = worker.num_fds()
        yield client
        wait_for(lambda: worker.num_fds() <= before, "no connection is left open")
        accepted(post(client, json_entry()))
    for word in ("Traceback", "ERROR", "never retrieved", "panic"):
        assert word not in service.log


def body_of(entries: list[dict[str, Any]]) -> bytes:
    return json.dumps({"entries": entries}).encode()


# -- leaving --------------------------------------------------------------------------------------


def request_head(body: bytes) -> bytes:
    return (
        b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )


@contextmanager
def http1(port: int, body: bytes, sent: int, *, reset: bool = False) -> Iterator[None]:
    """Send so much of the body; at the end close, or let the kernel reset the connection."""
    with RawConnection(port) as connection:
        connection.send(request_head(body) + body[:sent])
        yield
        if reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)


@contextmanager
def http2(port: int, body: bytes, sent: int, *, reset: bool = False) -> Iterator[None]:
    """Send so much of the body; at the end close, and reset the stream by itself before."""
    with RawHttp2(port) as connection:
        stream, headers = connection.headers(more=[("content-type", JSON)])
        connection.send(headers + connection.data(stream, body[:sent], end=sent == len(body)))
        yield
        if reset:
            connection.send(connection.reset(stream))


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("leave", [http1, http2], ids=["h1", "h2"])
def test_a_client_that_leaves_before_its_body_is_complete_has_sent_nothing(
    service: Service, client: httpx.Client, leave: Leave, reset: bool
) -> None:
    requests = [[json_entry(), json_entry()] for _ in range(CLIENTS)]
    for number, entries in enumerate(requests):
        body = body_of(entries)
        with leave(service.port, body, number * (len(body) - 1) // CLIENTS, reset=reset):
            pass
    for entries in requests:
        assert accepted(post(client, *entries))["duplicates"] == []


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("leave", [http1, http2], ids=["h1", "h2"])
def test_a_client_that_leaves_while_its_entries_are_synced_may_send_them_again(
    service: Service, client: httpx.Client, tmp_path: Path, leave: Leave, reset: bool
) -> None:
    """They are not there before the sync has ended, and then as a whole, once."""
    entries = [json_entry(), json_entry()]
    body = body_of(entries)
    [segment] = (service.data_dir / "wal").glob("*.wal")
    before = segment.stat().st_size
    output = tmp_path / "trace"

    def unknown() -> list[Syscall]:
        return [call for call in read_trace(output) if "HTTP/1.1 404" in call.arguments]

    with holding(service.worker_pid, output, "fdatasync"):
        with leave(service.port, body, len(body), reset=reset):
            wait_for(lambda: segment.stat().st_size > before, "their record is written")
        for entry in entries:
            assert client.get(f"/entries/{entry['request_uuid']}").status_code == 404
        # The client may have its answer before the tracer.
        wait_for(lambda: len(unknown()) == len(entries), "the trace has the answers")
    [sync] = [
        call for call in read_trace(output) if (call.name, call.path) == ("fdatasync", str(segment))
    ]
    assert all(sync.began < call.began and call.ended < sync.ended for call in unknown())
    again = accepted(post(client, *entries))
    assert again["first_command_id"] is None
    duplicates = {found["request_uuid"]: found["command_id"] for found in again["duplicates"]}
    assert list(duplicates) == [entry["request_uuid"] for entry in entries]
    recovered = [
        (str(UUID(bytes=command["request_uuid"])), command_id)
        for record in read_wal(segment.parent)
        for command_id, command in enumerate(
            record.content.get("commands", []), record.content["first_command_id"]
        )
    ]
    assert [found for found in recovered if found[0] in duplicates] == list(duplicates.items())


@pytest.mark.parametrize("leave", [http1, http2], ids=["h1", "h2"])
def test_a_client_that_leaves_without_its_answer_gets_it_when_it_sends_again(
    service: Service, client: httpx.Client, leave: Leave
) -> None:
    entries = [json_entry(), json_entry()]
    body = body_of(entries)
    with leave(service.port, body, len(body)):
        paths = [f"/entries/{entry['request_uuid']}" for entry in entries]
        wait_for(lambda: client.get(paths[1]).status_code == 200, "they are durable")
        ids = [client.get(path).json()["command_id"] for path in paths]
    again = accepted(post(client, *entries))
    assert [found["command_id"] for found in again["duplicates"]] == ids
    assert again["first_command_id"] is None


# -- never reading --------------------------------------------------------------------------------


def absent_reader(port: int) -> socket.socket:
    """Asks for all blocks and reads none; the kernel has next to no room for them."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", port))
    reader.sendall(b"GET /blocks/stream HTTP/1.1\r\nhost: x\r\n\r\n")
    return reader


def test_blocks_that_nobody_reads_cost_next_to_nothing(
    service: Service, client: httpx.Client
) -> None:
    def make_blocks(count: int) -> None:
        with service.client() as own:
            for _ in range(count):
                accepted(post(own, json_entry(command_type="TickSnapshot")))

    with ThreadPoolExecutor(6) as threads, ExitStack() as stack:
        list(threads.map(make_blocks, [BLOCKS // 6] * 6))
        size = len(client.get("/blocks", params={"limit": BLOCKS}).content)
        worker = psutil.Process(service.worker_pid)
        before = worker.memory_info().rss
        readers = [stack.enter_context(absent_reader(service.port)) for _ in range(READERS // 2)]
        connection = stack.enter_context(RawHttp2(service.port))
        for _ in range(READERS // 2):
            connection.send(connection.headers("GET", "/blocks/stream", end=True)[1])
        for reader in [*readers, connection.socket]:
            assert reader.recv(1, socket.MSG_PEEK), "the stream has begun"
        # Every stream had many turns between these.
        for _ in range(200):
            accepted(post(client, json_entry()))
        assert READERS * size > 2 * FEW_BYTES
        assert worker.memory_info().rss - before < FEW_BYTES
