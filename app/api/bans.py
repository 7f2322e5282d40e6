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

    def __init__(self, ban_s: float) -> None:
        """With `MAX_FLOODS` in `ban_s` an address is banned until they are fewer; with 0, never."""
        self._ban_s = ban_s
        # When the latest were, in monotonic time; whose last one is the latest comes last.
        self._floods: dict[Address, deque[float]] = {}

    def count(self, host: str, now: float) -> None:
        """A connection of this host has flooded. `now` is monotonic."""
        if self._ban_s and (address := _address(host)):
            floods = self._floods.pop(address, None) or deque(maxlen=MAX_FLOODS)
            floods.append(now)
            self._floods[address] = floods

    def banned(self, now: float) -> frozenset[Address]:
        """Who is banned, by their first address where it is a network; the others are forgotten."""
        since = now - self._ban_s
        self._floods = {who: times for who, times in self._floods.items() if times[-1] > since}
        found = [
            who
            for who, times in self._floods.items()
            if len(times) == MAX_FLOODS and times[0] > since
        ]
        return frozenset(found[-MAX_BANNED:])


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
