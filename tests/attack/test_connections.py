"""Connections that are only in the way, and requests that two servers could read differently."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
from hyperframe.frame import DataFrame, HeadersFrame

from tests.attack.conftest import NO_DATABASE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import JSON, MSGPACK
from tests.support.raw_http import PREFACE, RawConnection, RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for

REQUEST: Final = b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture(scope="module")
def slow_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("slow")
    with Service(folder / "data", NO_DATABASE, ALLOW_NEW_WAL="true") as service:
        yield service.start()


def with_bytes(data: bytes) -> Callable[[int], RawConnection]:
    """Opens a connection on which no more than this is sent."""

    def connect(port: int) -> RawConnection:
        connection = RawConnection(port)
        connection.send(data)
        return connection

    return connect


def with_half_a_header_block(port: int) -> RawConnection:
    connection = RawHttp2(port)
    connection.send(HeadersFrame(1, data=b"\x82").serialize())
    return connection


SLOW: Final[dict[str, Callable[[int], RawConnection]]] = {
    "nothing": RawConnection,
    "half a header": with_bytes(REQUEST),
    "half a body": with_bytes(REQUEST + b"content-length: 100\r\n\r\n{"),
    "half a chunk": with_bytes(REQUEST + b"transfer-encoding: chunked\r\n\r\n64\r\n{"),
    "half a body for no use": with_bytes(
        b"POST /flush HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    ),
    "no further request": with_bytes(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"),
    "half a preface": with_bytes(PREFACE[:10]),
    "a preface": with_bytes(PREFACE),
    "no streams": RawHttp2,
    "half a header block": with_half_a_header_block,
}


@pytest.fixture(scope="module")
def slow_clients(slow_service: Service) -> Iterator[dict[str, RawConnection]]:
    """One of each kind; the tests of this module run while they do nothing more."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(connect(slow_service.port)) for name, connect in SLOW.items()
        }


@pytest.fixture(scope="module")
def slow_stream(slow_service: Service) -> Iterator[RawHttp2]:
    """A body over HTTP/2 that stops half-way."""
    with RawHttp2(slow_service.port) as connection:
        stream, headers = connection.headers(more=[("content-type", MSGPACK)])
        connection.send(headers + connection.data(stream, b"\x81"))
        yield connection


@pytest.fixture(autouse=True)
def begin_slowly(slow_clients: dict[str, RawConnection], slow_stream: RawHttp2) -> None:
    """Let the slow clients begin before the first test does."""


def test_silent_connections_do_not_keep_others_out(service: Service) -> None:
    """The service accepts 256 connections, and as many more wait to be accepted."""
    with ExitStack() as stack, HonestClient(service) as honest:
        for _ in range(400):
            stack.enter_context(RawConnection(service.port))
        honest.goes_on()


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(b"content-length: 5\r\ncontent-length: 6\r\n\r\n{}    ", id="two lengths"),
        pytest.param(b"content-length: 2, 2\r\n\r\n{}", id="a list of lengths"),
        pytest.param(b"content-length: +2\r\n\r\n{}", id="a length with a sign"),
        pytest.param(b"content-length : 2\r\n\r\n{}", id="a space before the colon"),
        pytest.param(b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", id="an unknown coding"),
        pytest.param(b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="not chunked"),
        pytest.param(b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\n{}", id="identity"),
        pytest.param(b"x: a\r\n b\r\ncontent-length: 2\r\n\r\n{}", id="a folded header"),
        pytest.param(b"x: a\0b\r\ncontent-length: 2\r\n\r\n{}", id="NUL in a header"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", id="minus"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n2;a\nb\r\n{}\r\n0\r\n\r\n", id="lf"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n{}", id="overflow"),
    ],
)
def test_a_body_whose_length_can_be_read_in_two_ways_is_a_400_and_ends_the_connection(
    service: Service, rest: bytes
) -> None:
    with RawConnection(service.port) as connection:
        connection.send(REQUEST + rest)
        answer = connection.answer()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("te_first", [True, False])
def test_what_follows_a_body_with_two_kinds_of_length_is_not_taken_for_a_request(
    service: Service, te_first: bool
) -> None:
    lengths = [b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n"]
    head = b"".join(lengths if te_first else reversed(lengths))
    smuggled = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with RawConnection(service.port) as connection:
        connection.send(REQUEST + head + b"\r\n0\r\n\r\n" + smuggled)
        answer = connection.answer()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), 400, id="TLS"),
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, id="uri"),
        pytest.param(
            b"GET / HTTP/1.1\r\nhost: x\r\n"
            + b"".join(b"x%d: %s\r\n" % (number, b"y" * 1000) for number in range(1000)),
            431,
            id="headers",
        ),
    ],
)
def test_what_is_no_request_is_refused(service: Service, request_bytes: bytes, status: int) -> None:
    with RawConnection(service.port) as connection:
        connection.send(request_bytes)
        assert connection.answer().startswith(b"HTTP/1.1 %d " % status)


def test_a_websocket_header_that_is_not_ascii_ends_no_worker(service: Service) -> None:
    """CVE-2026-42544."""
    worker = service.worker_pid
    with RawConnection(service.port) as connection:
        connection.send(
            b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"sec-websocket-protocol: \xff\xfe\r\n\r\n"
        )
        assert connection.received().startswith(b"HTTP/1.1 ")
    assert service.worker_pid == worker


def test_a_body_for_a_call_that_takes_none_is_refused(service: Service) -> None:
    with service.client() as client:
        assert client.post("/flush?timeout_s=0", content=bytes(1000)).status_code == 504
        assert client.post("/flush?timeout_s=0", content=bytes(100_000)).status_code == 413


@pytest.mark.parametrize("rest", [b"content-length: 500", b"transfer-encoding: chunked"])
def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(
    service: Service, rest: bytes
) -> None:
    before = refusals(service)
    with RawConnection(service.port) as connection:
        connection.send(REQUEST + rest + b"\r\n\r\n5\r\n{")
        connection.socket.shutdown(socket.SHUT_WR)
    wait_for(lambda: refusals(service) > before, "the service has noticed")


def refusals(service: Service) -> float:
    with service.client() as client:
        text = client.get("/metrics", headers={"accept": JSON}).text
    name = 'ht_journal_rejected_total{reason="incomplete_body"}'
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.timeout(90)
def test_slow_clients_are_cut_off(
    slow_service: Service, slow_clients: dict[str, RawConnection]
) -> None:
    """Headers have 10 s, bodies 30 s and what is left of a refused one 5 s."""
    waiting = dict(slow_clients)

    def all_are_cut() -> bool:
        for name in [name for name, connection in waiting.items() if connection.is_cut()]:
            del waiting[name]
        return not waiting

    try:
        wait_for(all_are_cut, "all are cut off", 60)
    except AssertionError:
        assert waiting == {}
        raise


def test_a_slow_body_over_http_2_is_refused_and_leaves_the_connection(
    slow_service: Service, slow_stream: RawHttp2
) -> None:
    """Behind the test that has waited for all the others."""
    slow_stream.socket.settimeout(30)
    bodies = (frame for frame in slow_stream.frames() if isinstance(frame, DataFrame))
    assert b"408" in next(bodies).data
    _, headers = slow_stream.headers("GET", "/healthz", end=True)
    slow_stream.send(headers)
    assert b"ok" in next(bodies).data


def test_no_slow_client_has_left_a_trace(slow_service: Service, tmp_path: Path) -> None:
    assert "Traceback" not in slow_service.log
    with HonestClient(slow_service) as honest:
        honest.goes_on()
