"""Hashing by the hundred: compiled where that is loaded, one by one where it is not.

`load` brings in `app.chain.lanes`. Before it has, and where numba is not installed, the functions
here say that they can't, and their callers hash as they do for a few.
"""

from importlib import import_module
from typing import Any, Final

from app.chain.hashing import HASH_BYTES

LEAST: Final = 8
"""So many hashes make it worth while."""


class _Loaded:
    """The compiled functions, once they are there."""

    lanes: Any = None


def load() -> bool:
    """Load the compiled functions; whether they can be had. Any thread.

    Takes half a second, and several where nothing compiled is kept from an earlier time.
    """
    try:
        _Loaded.lanes = import_module("app.chain.lanes")
    except ImportError:
        return False
    return True


def unload() -> None:
    """Go on without them."""
    _Loaded.lanes = None


def lanes_for(count: int) -> Any:
    """The compiled functions, if `count` hashes are worth it and they are loaded, else None."""
    return _Loaded.lanes if count >= LEAST else None


def split(hashes: bytes) -> list[bytes]:
    """Take hashes that stand side by side apart."""
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES)]
