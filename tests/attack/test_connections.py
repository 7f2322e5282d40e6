"""Connections that are only in the way, and requests that two servers could read differently."""

import socket
from contextlib import ExitStack
from typing import Final

import pytest

from tests.support.honest_client import HonestClient
from tests.support.http_entries import metric
from tests.support.raw_http import RawConnection
from tests.support.service import Service
from tests.support.waiting import wait_for

NAME: Final = "ht_journal_rejected_total"
REQUEST: Final = b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


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
    with service.client() as client:
        before = metric(client, NAME, reason="incomplete_body")
        with RawConnection(service.port) as connection:
            connection.send(REQUEST + rest + b"\r\n\r\n5\r\n{")
            connection.socket.shutdown(socket.SHUT_WR)
        wait_for(
            lambda: metric(client, NAME, reason="incomplete_body") > before,
            "the service has noticed",
        )
