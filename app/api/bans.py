"""Addresses that open no new connections for a while, since theirs flooded again and again.

What one hostile connection costs is bounded, but the next is opened at once, and may begin a
hundred calls before anything is known of it. So the kernel drops attempts to connect from there.
Connections that are open go on, and so do those of everybody else.
"""

import struct
from collections import deque
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

# One that is killed in the middle of many bodies is no attacker yet.
MAX_FLOODS: Final = 3
# The first ban is over before an honest client of that address, whose attempts the kernel repeats
# after 1 and 3 s, gives up. Each flood beyond those makes it so many times as long.
FIRST_BAN_S: Final = 3.0
_GROWTH: Final = 4
# More of them make it no longer.
_MAX_COUNTED: Final = MAX_FLOODS + 8
# The kernel bounds a filter and the one that it replaces together (net.core.optmem_max, 20 KiB on
# older ones): the latest are banned.
MAX_BANNED: Final = 32
# A host may have all addresses of an IPv6 network.
_IPV6_HOST_BITS: Final = 64

Address = IPv4Address | IPv6Address

# struct sock_filter (linux/filter.h) and its instructions (linux/bpf_common.h).
_INSTRUCTION: Final = struct.Struct("@HBBI")
_LOAD_WORD: Final = 0x20
_LOAD_BYTE: Final = 0x30
_AND: Final = 0x54
_JUMP: Final = 0x05
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_DROP: Final = 0
_PASS: Final = 0xFFFFFFFF
# A packet is seen from its TCP header on; its IP header begins here (SKF_NET_OFF).
_IP_HEADER: Final = 0xFFF00000
_IPV4_SOURCE: Final = _IP_HEADER + 12
_IPV6_SOURCE: Final = _IP_HEADER + 8
_IP_VERSION: Final = 0xF0
_IPV4: Final = 0x40
_TCP_FLAGS: Final = 13
_SYN: Final = 0x02
_SYN_AND_ACK: Final = 0x12


class Bans:
    """Counts, for each address, the connections that flooded."""

    def __init__(self, max_ban_s: float) -> None:
        """Who had `MAX_FLOODS` in `max_ban_s` is banned, for that long at most; with 0, nobody."""
        self._max_ban_s = max_ban_s
        # Whose last one is the latest comes last.
        self._floods: dict[Address, _Floods] = {}

    def count(self, host: str, now: float, floods: int = 1) -> None:
        """A connection of this host has flooded, or done as much as so many. `now` is monotonic."""
        if self._max_ban_s and (address := _address(host)):
            known = self._floods.pop(address, None) or _Floods()
            known.add(now, floods, self._max_ban_s)
            self._floods[address] = known

    def banned(self, now: float) -> frozenset[Address]:
        """Who is banned, by their first address where it is a network; the others are forgotten."""
        since = now - self._max_ban_s
        self._floods = {who: each for who, each in self._floods.items() if each.times[-1] > since}
        found = [who for who, each in self._floods.items() if each.banned_until > now]
        return frozenset(found[-MAX_BANNED:])


class _Floods:
    """An address's latest floods, and the end of its ban, in monotonic time."""

    __slots__ = ("banned_until", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=_MAX_COUNTED)
        self.banned_until = 0.0

    def add(self, now: float, floods: int, max_ban_s: float) -> None:
        self.times.extend([now] * floods)
        beyond = sum(time > now - max_ban_s for time in self.times) - MAX_FLOODS
        if beyond >= 0:
            self.banned_until = now + min(FIRST_BAN_S * _GROWTH**beyond, max_ban_s)


def _address(host: str) -> Address | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    network = IPv6Address(int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS)
    return address.ipv4_mapped or network


def filter_program(banned: Iterable[Address]) -> bytes:
    """A program for `sockets.filter_attempts` that drops those from who is banned."""
    from_ipv4 = _instruction(_LOAD_WORD, _IPV4_SOURCE)
    from_ipv6 = b""
    for address in banned:
        if isinstance(address, IPv4Address):
            from_ipv4 += _if_equal(int(address), _instruction(_RETURN, _DROP))
        else:
            high, low = divmod(int(address) >> _IPV6_HOST_BITS, 1 << 32)
            from_ipv6 += _instruction(_LOAD_WORD, _IPV6_SOURCE) + _if_equal(
                high,
                _instruction(_LOAD_WORD, _IPV6_SOURCE + 4)
                + _if_equal(low, _instruction(_RETURN, _DROP)),
            )
    passed = _instruction(_RETURN, _PASS)
    from_ipv4 += passed
    from_ipv6 += passed
    return (
        _instruction(_LOAD_BYTE, _TCP_FLAGS)
        + _instruction(_AND, _SYN_AND_ACK)
        + _instruction(_JUMP_IF_EQUAL, _SYN, if_true=1)
        + passed
        + _instruction(_LOAD_BYTE, _IP_HEADER)
        + _instruction(_AND, _IP_VERSION)
        + _if_equal(_IPV4, _instruction(_JUMP, 1))
        + _instruction(_JUMP, len(from_ipv4) // _INSTRUCTION.size)
        + from_ipv4
        + from_ipv6
    )


def _if_equal(value: int, then: bytes) -> bytes:
    """Go on with `then` where what was loaded is this value, else behind it."""
    skipped = len(then) // _INSTRUCTION.size
    return _instruction(_JUMP_IF_EQUAL, value, if_false=skipped) + then


def _instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)
