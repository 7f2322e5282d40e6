"""How functions are compiled by numba: for given types, when their module is imported.

Only modules of compiled functions import this one, and they are loaded in the background once they
are needed: numba takes a quarter of a second to load, and longer where nothing compiled is kept
from before. What is kept is told by a module's own source: constants that are compiled in must be
defined in the module that uses them.
"""

from typing import Any

from numba import njit


def compiled(signature: Any, *, inline: bool = False) -> Any:
    """Compile now, for these types; kept beside the source where that can be written.

    The interpreter is unlocked while such a function runs. An `inline` one becomes a part of every
    other that calls it.
    """

    def compile_(function: Any) -> Any:
        try:
            return njit(signature, nogil=True, cache=True, forceinline=inline)(function)
        except RuntimeError:  # nowhere to keep it
            return njit(signature, nogil=True, forceinline=inline)(function)

    return compile_
