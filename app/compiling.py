"""How functions are compiled by numba: for given types, when their module is imported.

Only modules of compiled functions import this one, and `app.service.compiled` loads them, once they
are needed: numba takes a quarter of a second to load, and longer where nothing compiled is kept.
"""

from typing import Any

from numba import njit


def compiled(signature: Any, *, inline: bool = False) -> Any:
    """Compile now, for these types; kept for the next time where that can be.

    The interpreter is unlocked while such a function runs. An `inline` one becomes a part of every
    other that calls it.
    """

    def compile_(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True, forceinline=inline)(function)
        except RuntimeError:  # nowhere to keep it
            return njit(signature, nogil=True, forceinline=inline)(function)

    return compile_
