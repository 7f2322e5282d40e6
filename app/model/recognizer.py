"""Telling packed entries that are surely valid, without decoding them.

That takes a fraction of what decoding and checking does. It is there once `load` was called, where
numba is installed; whatever is not recognized is decoded and checked, as it is without.
"""

from collections.abc import Collection
from importlib import import_module
from typing import Any, Final

LEAST: Final = 8
"""So many entries make it worth while."""


class Recognizer:
    """Recognizes entries under the configured limits.

    `watched` are types of commands to look out for; `*` is all of them.
    """

    def __init__(self, max_field_bytes: int, watched: Collection[str]) -> None:
        self._max_field_bytes = max_field_bytes
        self._watched = watched
        self._grammar: Any = None

    def load(self) -> bool:
        """Load the compiled functions; whether they can be had. Any thread.

        Takes half a second, and several where nothing compiled is kept from an earlier time.
        """
        try:
            grammar = import_module("app.model.grammar")
        except ImportError:
            return False
        self._grammar = grammar.Grammar(self._max_field_bytes, self._watched)
        return True

    def recognize(
        self, body: bytes | bytearray, at: int, count: int
    ) -> tuple[list[int], bool] | None:
        """The keys of `count` entries packed from `at` up to the end, and whether any is watched.

        None when it is not sure that they are valid, or can't be told.
        """
        if self._grammar is None or count < LEAST:
            return None
        found: tuple[list[int], bool] | None = self._grammar.recognize(body, at, count)
        return found
