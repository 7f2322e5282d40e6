"""Hashing by the hundred: compiled where that is loaded, one by one where it is not.

Before `app.chain.lanes` is in use, the functions here say that they can't, and their callers hash
as they do for a few.
"""

from typing import Any, Final

from app.chain.hashing import HASH_BYTES

LEAST: Final = 8
"""So many hashes make it worth while."""


class _Loaded:
    """The compiled functions, once they are there."""

    lanes: Any = None


def use(lanes: Any) -> None:
    """Hash by the module `app.chain.lanes` from now on, or without it if None. Any thread."""
    _Loaded.lanes = lanes


def lanes_for(count: int) -> Any:
    """The compiled functions, if `count` hashes are worth it and they are loaded, else None."""
    return _Loaded.lanes if count >= LEAST else None


def split(hashes: bytes) -> list[bytes]:
    """Take hashes that stand side by side apart."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
