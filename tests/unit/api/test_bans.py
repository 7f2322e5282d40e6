"""Who is banned, with the time given, and what the kernel makes of it: over real sockets."""

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from app.api import sockets
from app.api.bans import FIRST_BAN_S, MAX_BANNED, MAX_FLOODS, Bans, filter_program
from tests.support.waiting import wait_for

BAN_S = 15.0
OTHER = "127.0.0.1"
BANNED = "127.0.0.2"
ALL_OF_IPV4 = [ip_address(f"10.0.0.{number}") for number in range(MAX_BANNED)]
ALL_OF_IPV6 = [ip_address(f"2001:db8:0:{number:x}::") for number in range(MAX_BANNED)]


def flooded(bans: Bans, host: str, *times: float) -> None:
    for now in times:
        bans.count(host, now)


def test_so_many_within_the_longest_ban_are_a_short_one() -> None:
    bans = Bans(BAN_S)
    for number in range(MAX_FLOODS):
        assert not bans.banned(number)
        bans.count(BANNED, number)
    last = MAX_FLOODS - 1
    for now in (last, last + FIRST_BAN_S - 0.1):
        assert bans.banned(now) == {ip_address(BANNED)}
    assert not bans.banned(last + FIRST_BAN_S)


def test_as_many_over_a_longer_time_are_borne() -> None:
    bans = Bans(BAN_S)
    for number in range(10 * MAX_FLOODS):
        bans.count(BANNED, number * BAN_S / (MAX_FLOODS - 1))
        assert not bans.banned(number * BAN_S / (MAX_FLOODS - 1)), number


def test_who_goes_on_is_banned_for_longer_each_time_but_not_for_ever() -> None:
    longest_s = 100.0
    bans, now = Bans(longest_s), 0.0
    flooded(bans, BANNED, *[now] * (MAX_FLOODS - 1))
    for ban_s in (3, 12, 48, longest_s):
        bans.count(BANNED, now)
        assert bans.banned(now + ban_s - 0.1)
        now += ban_s
        assert not bans.banned(now)
    flooded(bans, BANNED, *[now] * 100)
    assert bans.banned(now + longest_s - 0.1)
    assert not bans.banned(now + longest_s)


def test_one_may_count_as_several() -> None:
    bans = Bans(BAN_S)
    bans.count(BANNED, 0, MAX_FLOODS)
    assert bans.banned(0) == {ip_address(BANNED)}


def test_each_address_has_a_count_of_its_own() -> None:
    bans = Bans(BAN_S)
    flooded(bans, BANNED, *[0.0] * MAX_FLOODS)
    flooded(bans, OTHER, *[0.0] * (MAX_FLOODS - 1))
    assert bans.banned(0) == {ip_address(BANNED)}


def test_with_no_time_nobody_is_banned() -> None:
    bans = Bans(0)
    flooded(bans, BANNED, *[0.0] * MAX_FLOODS)
    assert not bans.banned(0)


def test_of_more_than_the_kernel_bears_the_latest_are_banned() -> None:
    bans = Bans(BAN_S)
    for number in range(MAX_BANNED + 1):
        flooded(bans, f"10.0.0.{number}", *[0.0] * MAX_FLOODS)
    flooded(bans, "10.0.0.1", 0.0)
    expected = {ip_address(f"10.0.0.{number}") for number in range(1, MAX_BANNED + 1)}
    assert bans.banned(0) == expected


@pytest.mark.parametrize(
    ("hosts", "banned"),
    [
        (["2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:0:8000::"], ["2001:db8::"]),
        (["2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1"], []),
        (["::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.1"], ["10.0.0.1"]),
        (["fe80::1%eth0", "fe80::1%eth0", "fe80::2%eth1"], ["fe80::"]),
        (["localhost", "", "@"], []),
    ],
    ids=["one network", "three networks", "mapped", "scoped", "no addresses"],
)
def test_what_counts_as_one_address(hosts: list[str], banned: list[str]) -> None:
    bans = Bans(BAN_S)
    for host in hosts:
        bans.count(host, 0)
    assert bans.banned(0) == set(map(ip_address, banned))


class Listener:
    """Listens on both families, so that IPv4 comes as itself and IPv6 as well."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._socket = stack.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        self._port: int = self._socket.getsockname()[1]

    def attempt(self, source: str) -> socket.socket:
        """Begin to connect from this address to itself."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        client = self._stack.enter_context(socket.socket(family))
        client.bind((source, 0))
        client.setblocking(False)
        client.connect_ex((source, self._port))
        return client

    def accepts(self, attempt: socket.socket) -> bool:
        """Whether it is connected, by the time that another one is that comes from elsewhere."""
        with socket.create_connection((OTHER, self._port), 10):
            self._stack.enter_context(self._socket.accept()[0])
        return is_connected(attempt)


def is_connected(attempt: socket.socket) -> bool:
    return bool(select.select([], [attempt], [], 0)[1])


@pytest.fixture
def listener() -> Iterator[Listener]:
    with ExitStack() as stack:
        yield Listener(stack)


@pytest.mark.parametrize(
    ("source", "banned"),
    [
        (BANNED, [BANNED]),
        (BANNED, [*ALL_OF_IPV4[1:], BANNED]),
        (BANNED, [*ALL_OF_IPV6[1:], BANNED]),
        ("::1", ["::"]),
        ("::1", [*ALL_OF_IPV6[1:], "::"]),
        ("::1", [*ALL_OF_IPV4[1:], "::"]),
    ],
)
def test_who_is_banned_does_not_get_in_until_the_ban_ends(
    listener: Listener, source: str, banned: list[str]
) -> None:
    sockets.filter_attempts(filter_program(map(ip_address, banned)))
    attempt = listener.attempt(source)
    assert not listener.accepts(attempt)
    sockets.filter_attempts(filter_program(()))
    # It has been tried again by then.
    wait_for(lambda: is_connected(attempt), "the next attempt gets in")


@pytest.mark.parametrize(
    ("source", "banned"),
    [
        (BANNED, []),
        (BANNED, ["127.0.0.3", "127.0.1.2", "2.0.0.127", "7f00:2::", "::"]),
        # What stands where the source is in a header of the other family.
        ("::1", ["0.0.0.0", "0.0.0.1", "127.0.0.2", "::1:0:0:0:0", "1::"]),
    ],
)
def test_whoever_else_connects_gets_in(listener: Listener, source: str, banned: list[str]) -> None:
    sockets.filter_attempts(filter_program(map(ip_address, banned)))
    assert listener.accepts(listener.attempt(source))
