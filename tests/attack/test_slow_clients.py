"""Clients that are slow or do nothing are cut off, each kind by the limit that is meant for it.

In each test one limit is short and the others are an hour: only that one can be what is met.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, HeadersFrame

from tests.attack.conftest import NO_DATABASE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import MSGPACK, metric
from tests.support.raw_http import PREFACE, RawConnection, RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for

SHORT_S: Final = 1
LONG_S: Final = 3600
HEADERS_OF_16_KB: Final = HeadersFrame(1, data=bytes(16_000)).serialize()[:9]
EMPTY_CONTINUATION: Final = ContinuationFrame(1).serialize()
REQUEST: Final = b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


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


def with_half_a_body(port: int) -> RawHttp2:
    connection = RawHttp2(port)
    stream, headers = connection.headers(more=[("content-type", MSGPACK)])
    connection.send(headers + connection.data(stream, b"\x81"))
    return connection


def with_an_answer(port: int) -> RawHttp2:
    connection = RawHttp2(port)
    _, headers = connection.headers("GET", "/healthz", end=True)
    connection.send(headers)
    assert b"ok" in next(bodies(connection))
    return connection


IDLE: Final[dict[str, Callable[[int], RawConnection]]] = {
    "nothing": RawConnection,
    "half a header": with_bytes(REQUEST),
    "half a preface": with_bytes(PREFACE[:10]),
    "a preface": with_bytes(PREFACE),
    "no streams": RawHttp2,
    "half a header block": with_half_a_header_block,
    "no further request": with_bytes(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"),
    "no further request over HTTP/2": with_an_answer,
}
CUT_OFF: Final[dict[str, set[str]]] = {
    # The HTTP/1.1 layer takes what is between two requests for a part of the second.
    "HEADER_TIMEOUT_S": IDLE.keys() - {"no further request over HTTP/2"},
    "BODY_TIMEOUT_S": set(),
    "IDLE_TIMEOUT_S": {"no further request", "no further request over HTTP/2"},
}
# These get an answer that says why.
HALF_A_BODY: Final[dict[str, Callable[[int], RawConnection]]] = {
    "half a body": with_bytes(REQUEST + b"content-length: 100\r\n\r\n{"),
    "half a chunk": with_bytes(REQUEST + b"transfer-encoding: chunked\r\n\r\n64\r\n{"),
    "half a body for no use": with_bytes(
        b"POST /flush HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    ),
}


@pytest.mark.parametrize("limit", CUT_OFF)
def test_each_kind_of_slow_client_is_cut_off_by_its_own_limit_and_no_other_is(
    tmp_path: Path, limit: str
) -> None:
    limits = {name: SHORT_S if name == limit else LONG_S for name in CUT_OFF}
    with Service(tmp_path / "data", NO_DATABASE, ALLOW_NEW_WAL="true", **limits) as service:
        service.start()
        with ExitStack() as stack, HonestClient(service) as honest:

            def connected(connect: Callable[[int], RawConnection]) -> RawConnection:
                return stack.enter_context(connect(service.port))

            idle = {name: connected(connect) for name, connect in IDLE.items()}
            half = {name: connected(connect) for name, connect in HALF_A_BODY.items()}
            stream = stack.enter_context(with_half_a_body(service.port))
            if limit == "BODY_TIMEOUT_S":
                assert_answered_408(service, half, stream)
                half.clear()
            due = {name: idle.pop(name) for name in CUT_OFF[limit]}
            wait_for(lambda: all_are_cut(due), f"all of these are cut off: {list(due)}")
            left = idle | half
            assert [name for name, connection in left.items() if connection.is_cut()] == []
            assert not stream.is_cut()
            honest.goes_on()
        assert "Traceback" not in service.log


TRICKLES: Final[dict[str, tuple[str, Callable[[int], RawConnection], bytes]]] = {
    "a header": ("HEADER_TIMEOUT_S", with_bytes(REQUEST + b"x: "), b"a"),
    "a preface": ("HEADER_TIMEOUT_S", with_bytes(PREFACE[:1]), b"R"),
    "a frame of headers": ("HEADER_TIMEOUT_S", with_bytes(PREFACE + HEADERS_OF_16_KB), b"\x82"),
    "continuations": ("HEADER_TIMEOUT_S", with_half_a_header_block, EMPTY_CONTINUATION),
    "a body": ("BODY_TIMEOUT_S", with_bytes(REQUEST + b"content-length: 9999\r\n\r\n"), b"a"),
    "chunks": (
        *("BODY_TIMEOUT_S", with_bytes(REQUEST + b"transfer-encoding: chunked\r\n\r\n")),
        b"1\r\na\r\n",
    ),
    "frames of a body": ("BODY_TIMEOUT_S", with_half_a_body, RawHttp2.data(1, b"\x81")),
}


@pytest.mark.parametrize("name", TRICKLES)
def test_no_limit_begins_anew_with_every_byte(tmp_path: Path, name: str) -> None:
    limit, connect, part = TRICKLES[name]
    limits = {each: SHORT_S if each == limit else LONG_S for each in CUT_OFF}
    with Service(tmp_path / "data", NO_DATABASE, ALLOW_NEW_WAL="true", **limits) as service:
        service.start()
        with connect(service.port) as connection, HonestClient(service) as honest:
            connection.socket.settimeout(0.1)
            received = b""

            def has_ended() -> bool:
                nonlocal received
                if not connection.send(part):
                    return True
                with suppress(TimeoutError):
                    more = connection.received()
                    received += more
                    return not more or b"body_timeout" in received
                return False

            # Each time it has waited for an answer, which sets the pace.
            wait_for(has_ended, "it is cut off or refused", interval_s=0)
            honest.goes_on()


def all_are_cut(due: dict[str, RawConnection]) -> bool:
    for name in [name for name, connection in due.items() if connection.is_cut()]:
        del due[name]
    return not due


def assert_answered_408(service: Service, half: dict[str, RawConnection], stream: RawHttp2) -> None:
    """All of these are answered so; over HTTP/2 the connection goes on."""
    for name, connection in half.items():
        assert connection.received().startswith(b"HTTP/1.1 408 "), name
    assert b"not complete after 1 s" in next(bodies(stream))
    _, headers = stream.headers("GET", "/healthz", end=True)
    stream.send(headers)
    assert b"ok" in next(bodies(stream))
    with service.client() as client:
        assert metric(client, "ht_journal_rejected_total", reason="body_timeout") == 3


def bodies(connection: RawHttp2) -> Iterator[bytes]:
    return (frame.data for frame in connection.frames() if isinstance(frame, DataFrame))
