"""Content that is nested more deeply than a request may be."""

from collections.abc import Callable
from typing import Final, TypeVar

import msgpack

from tests.support.http_entries import msgpack_entry

T = TypeVar("T")
_MOST: Final = 20_000


def nested_digest(depth: int) -> bytes:
    """A digest in MessagePack, with a symbol that is so many lists in each other."""
    return b"\x81\xa7symbols\x81\xa1a" + b"\x91" * depth + b"\x90"


def nested_entry(depth: int, **fields: object) -> bytes:
    """The smallest entry in MessagePack, save for `fields` and such a `pre_digest`."""
    packed = [msgpack.packb(part) for field in msgpack_entry(**fields).items() for part in field]
    header = bytes([0x80 + len(packed) // 2 + 1])
    return b"".join([header, *packed, msgpack.packb("pre_digest"), nested_digest(depth)])


def deepest(read: Callable[[int], T | None]) -> tuple[int, T]:
    """The greatest depth that `read` can read, and what comes of it; None of any greater one."""
    low, high, found = 1, _MOST, None
    while high - low > 1:
        middle = (low + high) // 2
        taken = read(middle)
        low, high, found = (middle, high, taken) if taken else (low, middle, found)
    assert found is not None
    return low, found


def below_calls(count: int, call: Callable[[], T]) -> T:
    """What `call` returns below so many calls, which leave it less of the recursion limit."""
    return call() if count == 0 else below_calls(count - 1, call)
