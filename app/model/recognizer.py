"""Telling entries that are surely valid, without decoding them.

That takes a fraction of what decoding and checking does. Before the compiled functions are loaded
nothing is recognized; whatever is not is decoded and checked.
"""

from collections.abc import Collection
from typing import Any, Final, NamedTuple, Protocol

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

    def use(self, grammar: Any) -> None:
        """Recognize entries from now on, by the module `app.model.grammar`. Any thread."""
        self._compiled = grammar.Grammar(self._max_field_bytes, self._watched)

    def recognize(self, array: memoryview) -> Recognized | None:
        """The entries of an array in MessagePack; None where it is not sure that all are valid."""
        return None if self._compiled is None else self._compiled.recognize(array)

    def transcribe(self, body: bytes | bytearray) -> memoryview | None:
        """The entries of a body in JSON as such an array, be they valid or not.

        None where anything is unusual.
        """
        return None if self._compiled is None else self._compiled.transcribe(body)
