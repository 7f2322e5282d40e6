"""Floods that begin anew on every connection: the real service lets in no more from there."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from select import select

import httpx
import pytest
from hyperframe.frame import HeadersFrame

from app.api.bans import MAX_FLOODS
from app.api.connections import STREAMS_AT_ONCE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import MSGPACK, msgpack_entry, packed
from tests.support.raw_http import RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for

NO_DATABASE = "postgresql://127.0.0.1:9/none"
ATTACKER = "127.0.0.2"
BODY = (("content-type", MSGPACK),)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    data_dir = tmp_path / "data"
    with Service(data_dir, NO_DATABASE, ALLOW_NEW_WAL="true", FLOOD_BAN_S=3600) as service:
        yield service.start()


def broken_off_bodies(attacker: RawHttp2) -> None:
    while attacker.is_served():
        stream, headers = attacker.headers(more=BODY)
        attacker.send(headers + attacker.data(stream, b"\x81") + attacker.reset(stream))


def refused_bodies(attacker: RawHttp2) -> None:
    """Their answers do not wait for what there is of them."""
    while attacker.is_served():
        stream, headers = attacker.headers(more=[("content-type", "text/plain")])
        attacker.send(headers + attacker.data(stream, b"\x81"))
        if attacker.is_served():
            attacker.send(attacker.reset(stream))


def calls_that_are_reset(attacker: RawHttp2) -> None:
    """Each waits for a replication that does not come."""
    while attacker.is_served():
        stream, headers = attacker.headers("POST", "/flush?timeout_s=3600", end=True)
        attacker.send(headers)
        if attacker.is_served():
            attacker.send(attacker.reset(stream))


def bodies_in_single_bytes(attacker: RawHttp2) -> None:
    """So many that the HTTP/2 layer ends the connection."""
    streams = []
    for _ in range(STREAMS_AT_ONCE - 1):
        stream, headers = attacker.headers(more=BODY)
        attacker.send(headers)
        streams.append(stream)
    assert attacker.is_served()
    byte = b"".join(attacker.data(stream, b"\x81") for stream in streams)
    while attacker.send(byte) and not attacker.is_cut():
        pass


def headers_that_ask_for_nothing(attacker: RawHttp2) -> None:
    """They are no requests, and so none that the service would know of."""
    block = b"\x82" + b"\x40\x01a\x01b" * 2000  # a method, and no path
    for stream in range(1001, 1201, 2):
        attacker.send(HeadersFrame(stream, data=block, flags=["END_HEADERS"]).serialize())
    attacker.answer()


# By connections that are open already: so many that the ban does not end meanwhile.
MANY = MAX_FLOODS + 3


# No more calls wait for replication than two connections have.
@pytest.mark.parametrize(
    "floods",
    [
        [broken_off_bodies] * MANY,
        [refused_bodies] * MANY,
        [bodies_in_single_bytes] * MANY,
        [headers_that_ask_for_nothing] * (MANY // MAX_FLOODS),
        [calls_that_are_reset] * 2 + [broken_off_bodies] * (MANY - 2),
    ],
    ids=lambda floods: floods[0].__name__,
)
def test_who_floods_on_every_connection_is_banned_and_nobody_else(
    service: Service, floods: list[Callable[[RawHttp2], None]]
) -> None:
    with HonestClient(service) as before, RawHttp2(service.port, source=ATTACKER) as open_before:
        assert open_before.is_served()
        with ExitStack() as stack:
            attackers = [
                stack.enter_context(RawHttp2(service.port, source=ATTACKER)) for _ in floods
            ]
            assert all(attacker.is_served() for attacker in attackers)
            for flood, attacker in zip(floods, attackers, strict=True):
                flood(attacker)
                assert attacker.is_cut()
        wait_for(lambda: f"{ATTACKER} opens no new connections" in service.log, "it is banned")
        with socket.socket() as attempt, HonestClient(service) as honest:
            attempt.bind((ATTACKER, 0))
            attempt.setblocking(False)
            attempt.connect_ex(("127.0.0.1", service.port))
            honest.goes_on()
            assert not select([], [attempt], [], 0)[1]
        before.goes_on()
        assert open_before.is_served()


async def test_many_large_bodies_at_once_are_no_flood(service: Service) -> None:
    """The server holds much of them before the service has heard of any."""
    body = packed(*(msgpack_entry(command_data=bytes(1 << 18)) for _ in range(8)))
    headers = {"content-type": MSGPACK}
    for _ in range(2):
        async with httpx.AsyncClient(
            base_url=service.url, http1=False, http2=True, timeout=60, trust_env=False
        ) as client:
            sent = (client.post("/entries", content=body, headers=headers) for _ in range(16))
            answers = await asyncio.gather(*sent)
        assert {answer.status_code for answer in answers} == {200}
    assert "cut off" not in service.log
    assert "floods" not in service.log
