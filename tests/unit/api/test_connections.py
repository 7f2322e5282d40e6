"""Which connections are cut off, and when: over real sockets, with the time given."""

import asyncio
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import pytest

from app.api.bans import MAX_FLOODS
from app.api.connections import (
    CROWDED_IDLE_S,
    MAX_BROKEN_OFF,
    MAX_IN_PROGRESS,
    MAX_SMALL_PARTS,
    SMALL_PART_BYTES,
    WINDOW_BYTES,
    Connections,
)
from app.api.sockets import Peer
from app.api.unasked import MAX_UNASKED_BYTES
from tests.support.waiting import wait_for

FIRST_REQUEST_S = 10.0
IDLE_S = 60.0
BAN_S = 15.0


def watched(limit: int = 100, ban_s: float = 0, **bounds: int) -> Connections:
    return Connections(limit, FIRST_REQUEST_S, IDLE_S, ban_s, **bounds)


class Server:
    """Accepts connections in this process, as the server does in the worker's."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._clients: dict[Peer, socket.socket] = {}
        self.accepted: dict[Peer, socket.socket] = {}

    def connect(self) -> Peer:
        address = self._listener.getsockname()
        client = self._stack.enter_context(socket.create_connection(address, 10))
        accepted, _ = self._listener.accept()
        peer: Peer = client.getsockname()
        self._clients[peer] = client
        self.accepted[peer] = self._stack.enter_context(accepted)
        return peer

    def sends(self, peer: Peer, size_bytes: int) -> None:
        """So much of what this client sends is read."""
        for part in range(0, size_bytes, 1 << 16):
            sent = bytes(min(1 << 16, size_bytes - part))
            self.write(peer, sent)
            left_bytes = len(sent)
            while left_bytes:
                left_bytes -= len(self.accepted[peer].recv(left_bytes))

    def write(self, peer: Peer, sent: bytes) -> None:
        """This client sends something."""
        self._clients[peer].sendall(sent)

    def attempt(self) -> socket.socket:
        """Begin to connect."""
        client = self._stack.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(self._listener.getsockname())
        return client

    def is_let_in(self, attempt: socket.socket) -> bool:
        return bool(select.select([], [attempt], [], 0)[1])

    def is_cut(self, peer: Peer) -> bool:
        client = self._clients[peer]
        client.setblocking(False)
        try:
            return client.recv(1 << 20) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def server() -> Iterator[Server]:
    with ExitStack() as stack:
        yield Server(stack)


def test_one_that_never_asks_for_anything_is_cut_off(server: Server) -> None:
    connections, peer, now = watched(), server.connect(), monotonic()
    for later_s in (0.0, FIRST_REQUEST_S):
        connections.check(now + later_s)
        assert not server.is_cut(peer)
    connections.check(now + FIRST_REQUEST_S + 1)
    assert server.is_cut(peer)


def test_one_is_cut_off_where_no_descriptor_is_left_to_look_with(server: Server) -> None:
    connections, peer, now = watched(), server.connect(), monotonic()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections.check(now)
    with ExitStack() as filled:
        while (copy := os.dup(0)) < server.accepted[peer].fileno():
            filled.callback(os.close, copy)
        os.close(copy)
        resource.setrlimit(resource.RLIMIT_NOFILE, (copy, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(0)
            connections.check(now + FIRST_REQUEST_S + 1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.is_cut(peer)


def test_one_that_has_asked_may_be_idle_for_longer(server: Server) -> None:
    connections, peer = watched(), server.connect()
    connections.began(peer)
    connections.ended(peer)
    now = monotonic()
    connections.check(now + IDLE_S - 1)
    assert not server.is_cut(peer)
    connections.check(now + IDLE_S + 1)
    assert server.is_cut(peer)


def test_one_with_a_request_in_progress_stays_however_long_it_takes(server: Server) -> None:
    connections, peer = watched(1), server.connect()
    connections.began(peer)
    for hours in range(3):
        connections.check(monotonic() + 3600 * hours)
    assert not server.is_cut(peer)


def test_one_that_breaks_off_what_it_begins_is_cut_off_at_once_and_alone(server: Server) -> None:
    connections, hostile, honest = watched(), server.connect(), server.connect()
    for count in range(MAX_BROKEN_OFF + 1):
        assert not server.is_cut(hostile), count
        for peer in (hostile, honest):
            connections.began(peer)
            connections.ended(peer)
        connections.broke_off(hostile)
    assert server.is_cut(hostile)
    assert not server.is_cut(honest)


def test_one_that_breaks_off_requests_now_and_then_stays(server: Server) -> None:
    connections, peer = watched(), server.connect()
    connections.began(peer)
    for _ in range(3):
        for _ in range(MAX_BROKEN_OFF):
            connections.broke_off(peer)
        connections.check(monotonic())
    assert not server.is_cut(peer)


def test_one_with_more_requests_in_progress_than_there_can_be_streams_is_cut_off_alone(
    server: Server,
) -> None:
    connections, hostile, honest = watched(), server.connect(), server.connect()
    for count in range(MAX_IN_PROGRESS):
        connections.began(hostile)
        assert not connections.is_cut(hostile), count
        connections.began(honest)
        connections.ended(honest)
    assert not server.is_cut(hostile)
    connections.began(hostile)
    assert connections.is_cut(hostile)
    assert server.is_cut(hostile)
    assert not connections.is_cut(honest)
    assert not server.is_cut(honest)


def test_clients_that_a_proxy_shows_as_one_are_not_cut_off_for_being_many() -> None:
    """Such a client has no port (X-Forwarded-For, as uvicorn reads it)."""
    connections, proxied = watched(), ("10.0.0.1", 0)
    for _ in range(2 * MAX_IN_PROGRESS):
        connections.began(proxied)
        connections.broke_off(proxied)
    assert not connections.is_cut(proxied)


async def passes_at_once(connections: Connections, peer: Peer) -> "asyncio.Task[bool] | None":
    """Take in a small part of this client's; the waiting, where there is one."""
    waiting = connections.arrived(peer, 1, last=False)
    if waiting is None:
        return None
    pacing = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    if not pacing.done():
        return pacing
    assert pacing.result()
    return None


async def waits_after_the_last_of(connections: Connections, peer: Peer) -> "asyncio.Task[bool]":
    """Take in so many small parts that the next one waits."""
    connections.began(peer)
    for count in range(MAX_SMALL_PARTS):
        assert await passes_at_once(connections, peer) is None, count
    waiting = await passes_at_once(connections, peer)
    assert waiting is not None
    return waiting


async def test_small_parts_of_bodies_are_read_so_many_at_a_time_on_each_connection(
    server: Server,
) -> None:
    connections, hostile, honest = watched(), server.connect(), server.connect()
    waiting = await waits_after_the_last_of(connections, hostile)
    connections.began(honest)
    assert await passes_at_once(connections, honest) is None
    assert not waiting.done()
    assert await waiting
    assert await passes_at_once(connections, hostile) is None


async def test_what_is_no_small_part_or_the_last_one_does_not_wait(server: Server) -> None:
    connections, peer = watched(), server.connect()
    waiting = await waits_after_the_last_of(connections, peer)
    assert connections.arrived(peer, SMALL_PART_BYTES, last=False) is None
    assert connections.arrived(peer, SMALL_PART_BYTES - 1, last=True) is None
    assert connections.arrived(peer, 0, last=False) is None
    assert await waiting


async def test_of_a_connection_that_is_gone_no_more_is_read(server: Server) -> None:
    connections, peer = watched(), server.connect()
    waiting = await waits_after_the_last_of(connections, peer)
    server.accepted[peer].close()
    assert not await waiting
    assert connections.is_cut(peer)


async def test_small_parts_of_clients_that_a_proxy_shows_as_one_do_not_wait() -> None:
    connections, proxied = watched(), ("10.0.0.1", 0)
    connections.began(proxied)
    for _ in range(2 * MAX_SMALL_PARTS):
        assert await passes_at_once(connections, proxied) is None


def look_twice(connections: Connections) -> None:
    """What came by the first look is judged by the second, as if no time had passed."""
    now = monotonic()
    connections.end_floods(now)
    connections.end_floods(now)


def test_one_that_sends_much_that_belongs_to_no_request_is_cut_off_alone(server: Server) -> None:
    connections, hostile, honest = watched(ban_s=BAN_S), server.connect(), server.connect()
    server.sends(hostile, MAX_UNASKED_BYTES)
    look_twice(connections)
    assert not server.is_cut(hostile)
    connections.began(honest)
    for peer in (hostile, honest):
        server.sends(peer, 1 << 16)
    # The server may have it to itself still.
    connections.end_floods(monotonic())
    assert not server.is_cut(hostile)
    connections.end_floods(monotonic())
    assert server.is_cut(hostile)
    assert not server.is_cut(honest)
    assert not server.is_let_in(server.attempt())


def test_what_is_read_of_a_body_or_left_unread_belongs_to_its_request(server: Server) -> None:
    connections, peer = watched(), server.connect()
    for _ in range(3):
        connections.began(peer)
        server.sends(peer, WINDOW_BYTES)
        look_twice(connections)
        connections.arrived(peer, WINDOW_BYTES, last=True)
        connections.ended(peer)
        look_twice(connections)
    connections.began(peer)
    connections.left_unread(peer)
    connections.ended(peer)
    server.sends(peer, WINDOW_BYTES)
    look_twice(connections)
    assert not server.is_cut(peer)


def test_a_request_in_progress_is_no_leave_to_send_what_belongs_to_none(server: Server) -> None:
    connections, peer = watched(), server.connect()
    connections.began(peer)
    server.sends(peer, WINDOW_BYTES + MAX_UNASKED_BYTES)
    look_twice(connections)
    assert not server.is_cut(peer)
    server.sends(peer, 1 << 16)
    look_twice(connections)
    assert server.is_cut(peer)


def test_connections_that_are_gone_before_it_is_judged_count_as_floods(server: Server) -> None:
    connections = watched(ban_s=BAN_S)
    for _ in range(MAX_FLOODS):
        peer = server.connect()
        server.sends(peer, MAX_UNASKED_BYTES + (1 << 16))
        connections.end_floods(monotonic())
        assert not server.is_cut(peer)
        server.accepted[peer].close()
        connections.end_floods(monotonic())
    assert not server.is_let_in(server.attempt())


def test_what_waits_in_the_kernel_of_a_connection_that_is_cut_off_is_not_worked_on(
    server: Server,
) -> None:
    connections, peer = watched(), server.connect()
    server.sends(peer, MAX_UNASKED_BYTES + (1 << 16))
    server.write(peer, bytes(1 << 16))
    look_twice(connections)
    assert server.is_cut(peer)
    assert server.accepted[peer].recv(1) == b""


def flood(connections: Connections, server: Server, count: int, on_disk: int = 0) -> None:
    """So many connections are cut off, for more requests than there can be streams."""
    for _ in range(count):
        peer = server.connect()
        with ExitStack() as waiting:
            for number in range(MAX_IN_PROGRESS + 1):
                connections.began(peer)
                if number < on_disk:
                    waiting.enter_context(connections.waiting_for_disk(peer))
        assert server.is_cut(peer)


def test_an_address_that_floods_several_connections_opens_no_new_one_for_a_while(
    server: Server,
) -> None:
    connections, open_one = watched(ban_s=BAN_S), server.connect()
    connections.began(open_one)
    flood(connections, server, MAX_FLOODS)
    attempt = server.attempt()
    assert not server.is_let_in(attempt)
    assert not server.is_cut(open_one)
    now = monotonic()
    connections.check(now)
    assert not server.is_let_in(attempt)
    connections.check(now + BAN_S)
    wait_for(lambda: server.is_let_in(attempt), "the next attempt is let in")


@pytest.mark.parametrize(
    ("count", "on_disk"),
    [(MAX_FLOODS - 1, 0), (MAX_FLOODS, MAX_IN_PROGRESS)],
    ids=["few", "given up while the disk is slow"],
)
def test_floods_that_may_be_an_honest_clients_ban_nobody(
    server: Server, count: int, on_disk: int
) -> None:
    connections = watched(ban_s=BAN_S)
    flood(connections, server, count, on_disk)
    server.connect()


async def test_bodies_that_break_off_in_small_parts_count_by_their_number(server: Server) -> None:
    """A client that writes a little at a time and goes away is none that floods."""
    connections = watched(ban_s=BAN_S)

    async def leaves(bodies: int) -> None:
        peer = server.connect()
        waiting = await waits_after_the_last_of(connections, peer)
        server.accepted[peer].close()
        assert not await waiting
        for _ in range(bodies):
            connections.broke_off(peer)

    for _ in range(2 * MAX_FLOODS):
        await leaves(MAX_BROKEN_OFF)
    server.connect()
    for _ in range(MAX_FLOODS):
        await leaves(MAX_BROKEN_OFF + 1)
    assert not server.is_let_in(server.attempt())


def test_a_ban_that_the_kernel_refuses_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = watched(ban_s=BAN_S)
    with monkeypatch.context() as broken:
        broken.setattr("app.api.sockets._SO_ATTACH_FILTER", -1)
        flood(connections, server, MAX_FLOODS)
        server.connect()
    connections.check(monotonic())
    assert not server.is_let_in(server.attempt())


def test_broken_off_bodies_of_clients_that_a_proxy_shows_as_one_ban_nobody(server: Server) -> None:
    connections, proxied = watched(ban_s=BAN_S), ("127.0.0.1", 0)
    connections.began(proxied)
    for _ in range((MAX_BROKEN_OFF + 1) * MAX_FLOODS):
        connections.broke_off(proxied)
    server.connect()


def test_when_places_are_few_those_that_never_asked_go_first(server: Server) -> None:
    connections = watched(4)
    used, *silent = [server.connect() for _ in range(4)]
    connections.began(used)
    connections.ended(used)
    now = monotonic()
    connections.check(now)
    assert not any(map(server.is_cut, server.accepted))
    connections.check(now + CROWDED_IDLE_S + 1)
    assert not server.is_cut(used)
    assert sum(map(server.is_cut, silent)) == 1


def test_beyond_the_bound_those_that_take_the_least_of_their_answers_are_cut_off(
    server: Server,
) -> None:
    connections = watched(max_untaken_bytes=10_000)
    taking, not_taking, small = [server.connect() for _ in range(3)]
    server.accepted[taking].sendall(bytes(20_000))
    for peer, answer_bytes in ((taking, 20_000), (not_taking, 9_000), (small, 2_000)):
        connections.began(peer)
        connections.answered(peer, answer_bytes)
        connections.ended(peer)
    connections.check(monotonic())
    assert [server.is_cut(peer) for peer in (taking, not_taking, small)] == [False, True, False]


def test_a_client_that_takes_an_answer_slowly_is_not_idle(server: Server) -> None:
    connections, peer = watched(), server.connect()
    connections.began(peer)
    connections.answered(peer, 1 << 20)
    connections.ended(peer)
    now = monotonic()
    for minute in range(1, 4):
        server.accepted[peer].sendall(bytes(1000))
        connections.check(now + 59 * minute)
        assert not server.is_cut(peer)
    connections.check(now + 59 * 3 + IDLE_S + 1)
    assert server.is_cut(peer)


def test_a_connection_that_this_process_has_made_itself_is_none_of_its_business(
    server: Server,
) -> None:
    elsewhere = socket.socketpair()
    peer = server.connect()
    now = monotonic()
    connections = watched()
    connections.check(now)
    connections.check(now + 1000)
    assert server.is_cut(peer)
    for end in elsewhere:
        end.setblocking(False)
        with pytest.raises(BlockingIOError):
            end.recv(1)
    for end in elsewhere:
        end.close()
