"""Requests that are begun only to be given up: so many are borne, and one more ends the connection.

The bounds are those of `app.api.connections`, here against the real server.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import httpx
import pytest

from app.api.connections import MAX_BROKEN_OFF, MAX_IN_PROGRESS, STREAMS_AT_ONCE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import MSGPACK, metric, refused
from tests.support.raw_http import RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for

BODY = (("content-type", MSGPACK),)


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def honest(service: Service) -> Iterator[HonestClient]:
    with HonestClient(service) as client:
        yield client


def test_a_connection_that_breaks_off_more_bodies_than_are_borne_is_cut(
    service: Service, client: httpx.Client, honest: HonestClient
) -> None:
    """The service forgets every 2 s how many there were, so it may happen once that it takes more.

    Each is known to have been noticed before the next begins.
    """
    before = metric(client, "ht_journal_rejected_total", reason="incomplete_body")
    with RawHttp2(service.port) as attacker:
        for number in range(MAX_BROKEN_OFF):
            break_off_a_body(attacker)
            wait_for(partial(has_noticed, client, before + number + 1), "it is noticed")
            assert attacker.is_served(), number
        honest.goes_on(1)
        for _ in range(100 * MAX_BROKEN_OFF):
            break_off_a_body(attacker)
            if not attacker.is_served():
                break
        assert attacker.is_cut()
        honest.goes_on()


def has_noticed(client: httpx.Client, count: float) -> bool:
    return metric(client, "ht_journal_rejected_total", reason="incomplete_body") >= count


def break_off_a_body(attacker: RawHttp2) -> None:
    stream, headers = attacker.headers(more=BODY)
    attacker.send(headers + attacker.data(stream, b"\x81"))
    assert attacker.is_served()
    attacker.send(attacker.reset(stream))


def test_streams_that_are_reset_make_no_room_for_ever_more_requests(
    service: Service, honest: HonestClient
) -> None:
    """CVE-2023-44487. Each waits for a replication that does not come, whether reset or not."""
    with RawHttp2(service.port) as attacker:
        # One more is there to see whether the connection is served.
        left = MAX_IN_PROGRESS - 1
        while left:
            count = min(left, STREAMS_AT_ONCE // 2)
            streams = [wait_for_ever(attacker) for _ in range(count)]
            assert attacker.is_served(), left
            attacker.send(b"".join(map(attacker.reset, streams)))
            left -= count
        assert attacker.is_served()
        honest.goes_on(1)
        wait_for_ever(attacker)
        # The call behind it may be answered first.
        wait_for(lambda: not attacker.is_served(), "the connection is cut")
        honest.goes_on()


def test_flushes_that_wait_leave_places_to_other_calls(
    service: Service, client: httpx.Client, honest: HonestClient
) -> None:
    """As many as there are places for calls, if they were let: they would be taken for an hour."""
    with ExitStack() as stack:
        for _ in range(1024 // STREAMS_AT_ONCE + 1):
            attacker = stack.enter_context(RawHttp2(service.port))
            for _ in range(STREAMS_AT_ONCE - 1):
                wait_for_ever(attacker)
            assert attacker.is_served()
        refused(client.post("/flush?timeout_s=0"), 50301, retriable=True)
        for path in ("/healthz", "/checkpoint", "/metrics"):
            assert client.get(path).status_code == 200
        honest.goes_on()


def wait_for_ever(attacker: RawHttp2) -> int:
    stream, headers = attacker.headers("POST", "/flush?timeout_s=3600", end=True)
    attacker.send(headers)
    return stream
