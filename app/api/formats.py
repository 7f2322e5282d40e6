"""Content types.

Which format a body has, which one an answer should have, and the encoding of answers.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final

import msgspec

from app.api.problems import PROBLEM_JSON, HttpProblem
from app.model.packing import array_header

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
MSGPACK_TYPES: Final = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
JSON_TYPES: Final = frozenset({JSON})

# What one part of an encoding holds at least, unless it is the last.
PART_ITEMS: Final = 32
PART_BYTES: Final = 64 << 10

_json: Final = msgspec.json.Encoder()
_msgpack: Final = msgspec.msgpack.Encoder()


def body_is_json(content_type: str) -> bool:
    """Whether a request body is JSON (else MessagePack). Raises a 415 for any other type."""
    name, _, parameters = content_type.partition(";")
    name = name.strip().lower()
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if name in MSGPACK_TYPES:
        return False
    if name in JSON_TYPES and charset in ("", "utf-8", "utf8"):
        return True
    raise HttpProblem(
        415,
        "unsupported_media_type",
        f"content type {content_type[:100]!r}; {JSON} and {MSGPACK} are supported",
    )


@lru_cache(maxsize=16)  # a header may be long
def answers_msgpack(accept: str) -> bool:
    """Whether the answer should be MessagePack: when the client ranks it above JSON."""
    best: tuple[float, bool] = (0.0, False)
    for item in accept.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if name in MSGPACK_TYPES and quality > best[0]:
            best = (quality, True)
        elif name in {JSON, PROBLEM_JSON, "application/*", "*/*"} and quality > best[0]:
            best = (quality, False)
    return best[1]


def encode(answer: Any, *, msgpack: bool, problem: bool = False) -> tuple[bytes, str]:
    """Encode an answer; returns it with its content type."""
    if msgpack:
        return _msgpack.encode(answer), MSGPACK
    return _json.encode(answer), PROBLEM_JSON if problem else JSON


def encode_in_parts(
    answer: dict[str, Any],
    items: Iterable[Any],
    count: int,
    behind: dict[str, Any] | None = None,
    *,
    msgpack: bool,
) -> Iterator[bytes]:
    """The encoding of an answer with its last value, an empty list, filled with so many `items`.

    `behind` is what follows the list in the answer.

    Each part is made when it is asked for, of items that are: it takes about as long as any other.
    """
    encode_item = (_msgpack if msgpack else _json).encode
    begun, rest = encode_item(answer), encode_item(behind or {})
    if msgpack:
        # A map of up to 15 keys counts them in the first byte.
        fields = bytes((begun[0] + len(behind or {}),))
        begin, between, end = fields + begun[1:-1] + array_header(count), b"", rest[1:]
    else:
        begin, between = begun[:-2], b","
        end = b"]," + rest[1:] if behind else b"]}"
    part: list[bytes] = []
    size_bytes = 0
    for item in items:
        part.append(encode_item(item))
        size_bytes += len(part[-1])
        if len(part) >= PART_ITEMS or size_bytes >= PART_BYTES:
            yield begin + between.join(part)
            begin, part, size_bytes = between, [], 0
    if part or begin != between:
        end = begin + between.join(part) + end
    if end:
        yield end
