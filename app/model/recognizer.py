"""Telling entries that are surely valid, without decoding them.

That takes a fraction of what decoding and checking does. It is there once `load` was called, where
numba is installed; whatever is not recognized is decoded and checked, as it is without.
"""

from collections.abc import Collection
from importlib import import_module
from typing import Final, NamedTuple, Protocol

LEAST_BYTES: Final = 4096
"""Shorter bodies are decoded as soon."""


class Recognized(NamedTuple):
    """Valid entries: their request UUIDs as integers, and whether the type of any is watched."""

    keys: list[int]
    is_watched: bool


class _Compiled(Protocol):
    def recognize(self, array: memoryview) -> Recognized | None: ...

    def transcribe(self, body: bytes | bytearray) -> memoryview | None: ...


class Recognizer:
    """Recognizes entries whose binary fields have at most `max_field_bytes`.

    `watched` are types of commands to look out for; `*` is all of them.
    """

    def __init__(self, max_field_bytes: int, watched: Collection[str]) -> None:
        self._max_field_bytes = max_field_bytes
        self._watched = watched
        self._compiled: _Compiled | None = None

    def load(self) -> bool:
        """Load the compiled functions; whether they can be had. Any thread.

        Takes half a second, and several where nothing compiled is kept from an earlier time.
        """
        try:
            grammar = import_module("app.model.grammar")
        except ImportError:
            return False
        self._compiled = grammar.Grammar(self._max_field_bytes, self._watched)
        return True

    def recognize(self, array: memoryview) -> Recognized | None:
        """The entries of an array in MessagePack; None where it is not sure that all are valid."""
        return None if self._compiled is None else self._compiled.recognize(array)

    def transcribe(self, body: bytes | bytearray) -> memoryview | None:
        """The entries of a body in JSON as such an array, be they valid or not.

        None where anything is unusual.
        """
        return None if self._compiled is None else self._compiled.transcribe(body)
