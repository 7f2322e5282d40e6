"""The entry types as a table of numbers, and `app.model.recognition` by that table."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import NODEFAULT, Struct, inspect

from app.errors import InvariantError
from app.model import recognition as to
from app.model.codec import LENGTHS
from app.model.entry import MAX_INT64, MAX_TEXT_BYTES, Entry, FillSideEffect
from app.model.packing import array_header, read_array_header
from app.model.recognizer import Recognized
from app.model.transcription import room_for, transcribe

# What is more than its type says (`app.model.rules`).
_SPECIAL: Final = {
    (Entry, "events"): to.EVENTS,
    (Entry, "command_type"): to.COMMAND_TYPE,
    (FillSideEffect, "event_idx"): to.EVENT_INDEX,
}
_KEY_BYTES: Final = 16
_MOST_HEADER_BYTES: Final = 5


class Grammar:
    """What entries are valid whose binary fields have at most `max_field_bytes`.

    `watched` are types of commands; `*` is all of them. Raises `TypeError` when an entry holds what
    recognition has no kind for.
    """

    def __init__(self, max_field_bytes: int, watched: Iterable[str]) -> None:
        table = _Table(max_field_bytes)
        table.add(Entry)
        self.table = table.as_array()
        names = "*" if "*" in watched else "".join(f"{name}\0" for name in watched)
        self._watched = np.frombuffer(names.encode(), np.uint8)
        # What is loaded at the first call is loaded here: later there may be no descriptor for it.
        rehearsed = self.transcribe(b'{"entries":[{}]}')
        if rehearsed is None or self.recognize(rehearsed) is not None:
            raise InvariantError("an entry without fields was not told for what it is")

    def recognize(self, array: memoryview) -> Recognized | None:
        """What `Recognizer.recognize` gives."""
        header = read_array_header(array, 0)
        if header is None or not 0 < header[0] < len(array):
            return None
        count, at = header
        data = np.frombuffer(array, np.uint8)
        data.flags.writeable = False
        found = np.empty(to.KEYS + 2 * count, np.int64)
        if to.recognize(data, at, count, self.table, self._watched, found) != len(array):
            return None
        uuids = found[to.KEYS :].view(f"V{_KEY_BYTES}").tolist()
        return Recognized(list(map(int.from_bytes, uuids)), bool(found[to.IS_WATCHED]))

    def transcribe(self, body: bytes | bytearray) -> memoryview | None:
        """What `Recognizer.transcribe` gives."""
        text = np.frombuffer(body, np.uint8)
        text.flags.writeable = False
        out = np.empty(_MOST_HEADER_BYTES + room_for(len(text)), np.uint8)
        count, end = transcribe(text, self.table, out, _MOST_HEADER_BYTES)
        if count < 0:
            return None
        header = array_header(count)
        array = out.data[_MOST_HEADER_BYTES - len(header) : end]
        array[: len(header)] = header
        return array


class _Table:
    def __init__(self, max_field_bytes: int) -> None:
        self._max_field_bytes = max_field_bytes
        self._rows: list[list[int]] = []
        self._parts: dict[type[Struct], int] = {}

    def add(self, part: type[Struct]) -> int:
        """The row of a struct, whose fields' rows stand together, and those of its parts behind."""
        if part in self._parts:
            return self._parts[part]
        described = inspect.type_info(part)
        if not isinstance(described, inspect.StructType):
            raise TypeError(f"{part.__name__} is no struct")
        own = self._parts[part] = len(self._rows)
        first = own + 1
        last = first + len(described.fields)
        self._rows += [[0] * to.COLUMNS for _ in range(first - own + last - first)]
        required = sum(field.required << at for at, field in enumerate(described.fields))
        self._rows[own][: to.REQUIRED + 1] = [first, last, required]
        for row, field in enumerate(described.fields, first):
            self._rows[row] = self._field(part, field)
        return own

    def as_array(self) -> Any:
        """The table as compiled functions take it."""
        table = np.array(self._rows, np.int64)
        table.flags.writeable = False
        return table

    def _field(self, part: type[Struct], field: inspect.Field) -> list[int]:
        kind, nullable = _without_none(field.type)
        what, low, high, of = self._kind(kind)
        what = _SPECIAL.get((part, field.name), what)
        name, default = field.encode_name, _default(field)
        return [len(name), what, int(nullable), low, high, of, default, *to.name_words(name)]

    def _kind(self, kind: inspect.Type) -> tuple[int, int, int, int]:
        """What a field holds, the limits of it, and the row of its struct."""
        match kind:
            case inspect.IntType(ge=low, le=high):
                return to.INTEGER, -MAX_INT64 - 1 if low is None else low, high or MAX_INT64, 0
            case inspect.Metadata(type=inspect.StrType(max_length=high)):
                return to.TYPE_NAME, 1, high or 0, 0
            case inspect.StrType(pattern=str()):
                return to.DECIMAL, 1, MAX_TEXT_BYTES, 0
            case inspect.StrType(min_length=low, max_length=high):
                return to.TEXT, low or 0, high or MAX_TEXT_BYTES, 0
            case inspect.BytesType(min_length=low):
                return to.BINARY, low or 0, self._max_field_bytes, 0
            case inspect.UUIDType():
                return to.UUID, 0, 0, 0
            case inspect.CustomType(cls=cls):
                return to.FIXED, LENGTHS[cls], 0, 0
            case inspect.StructType(cls=cls):
                return to.STRUCT, 0, 0, self.add(cls)
            case inspect.ListType(item_type=inspect.StructType(cls=cls)):
                return to.LIST, 0, 0, self.add(cls)
            case inspect.DictType(key_type=inspect.StrType(), value_type=inspect.AnyType()):
                return to.SYMBOLS, 0, 0, 0
        raise TypeError(f"entries of {kind} can't be recognized")


def _default(field: inspect.Field) -> int:
    """The byte that a default is encoded as; -1 where there is none."""
    if field.required:
        return -1
    default = field.default if field.default_factory is NODEFAULT else field.default_factory()
    encoded = msgspec.msgpack.encode(default)
    if len(encoded) != 1:
        raise TypeError(f"{field.name} has a default of more than one byte")
    return encoded[0]


def _without_none(kind: inspect.Type) -> tuple[inspect.Type, bool]:
    if not isinstance(kind, inspect.UnionType):
        return kind, False
    others = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
    if len(others) != 1 or len(kind.types) != len(others) + 1:
        raise TypeError(f"{kind} is more than one type")
    return others[0], True
