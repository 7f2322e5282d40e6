"""Hashing by the hundred: compiled where that is loaded, one by one where it is not.

Before `app.chain.lanes` and `app.chain.gathering` are in use, the functions here say that they
can't, and their callers hash as they do for a few, of entries that are decoded.
"""

from typing import Any, Final

from app.chain.hashing import HASH_BYTES
from app.model.packing import read_array_header

LEAST: Final = 8
"""So many hashes make it worth while."""


class _Loaded:
    """The compiled functions, once they are there."""

    lanes: Any = None
    gathering: Any = None


def use(lanes: Any, gathering: Any = None) -> None:
    """Hash by these modules of `app.chain` from now on, or without those that are None.

    Any thread.
    """
    _Loaded.lanes = lanes
    _Loaded.gathering = gathering


def lanes_for(count: int) -> Any:
    """The compiled functions, if `count` hashes are worth it and they are loaded, else None."""
    return _Loaded.lanes if count >= LEAST else None


def gather(array: memoryview) -> Any:
    """What the entries of a packed array have to be hashed; None where that can't be told of them.

    See `app.chain.gathering.Gathered`. They are known to be valid.
    """
    gathering, header = _Loaded.gathering, read_array_header(array, 0)
    if gathering is None or header is None:
        return None
    count, first = header
    return gathering.gather(array, first, count)


def split(hashes: bytes) -> list[bytes]:
    """Take hashes that stand side by side apart."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
