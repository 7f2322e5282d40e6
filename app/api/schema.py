"""The OpenAPI of `POST /entries`, which the framework does not see.

Made from the msgspec types themselves.
"""

from typing import Any, Final
from uuid import UUID

import msgspec

from app.api.answers import documented
from app.api.formats import JSON, MSGPACK_TYPES
from app.model.entry import ADDRESS_BYTES, HASH_BYTES, Address, Entry, Hash32

_EXAMPLE: Final = {
    "entries": [
        {
            "request_uuid": "6f0d2c2e-58a1-4b5e-9a44-0a3f5b1c7d10",
            "received_ts_ms": 1703462400000,
            "command_type": "CreateOrder",
            "command_data": "AYGjcHh5zQH0",
            "order_id": 42,
            "events": [
                {
                    "event_topic": "order-updates",
                    "event_key": "42",
                    "event_data": "AYGmc3RhdHVzpG9wZW4=",
                    "l2_sequence": 7,
                    "event_type": "OrderUpdate",
                }
            ],
        }
    ]
}
_EXAMPLE_ANSWER: Final[dict[str, Any]] = {
    "count": 1,
    "first_command_id": 1,
    "last_command_id": 1,
    "wal_offset": 412,
    "block_height": None,
    "duplicates": [],
}
_REF: Final = "#/components/schemas/{name}"


class AppendRequest(msgspec.Struct):
    """The body of `POST /entries`."""

    entries: list[Entry]


class DuplicateAnswer(msgspec.Struct):
    """An entry that was journaled before, with its first command_id."""

    request_uuid: UUID
    command_id: int


class AppendAnswer(msgspec.Struct):
    """The acknowledgement: every entry of the request is durable."""

    count: int
    first_command_id: int | None
    last_command_id: int | None
    wal_offset: int
    block_height: int | None
    duplicates: list[DuplicateAnswer]


def add_append(document: dict[str, Any], max_entries: int) -> dict[str, Any]:
    """Add `POST /entries` to an OpenAPI document."""
    (body, answer), components = msgspec.json.schema_components(
        (AppendRequest, AppendAnswer), schema_hook=_schema_of, ref_template=_REF
    )
    for name, schema in components.items():
        if name not in ("AppendAnswer", "DuplicateAnswer"):
            schema["additionalProperties"] = False
        schema.pop("title", None)
    components["AppendRequest"]["properties"]["entries"] |= {"minItems": 1, "maxItems": max_entries}
    document.setdefault("components", {}).setdefault("schemas", {}).update(components)
    binary = {name: {"schema": body} for name in sorted(MSGPACK_TYPES)}
    problems = documented(400, 408, 409, 413, 415, 422, 503, 507)
    for problem in problems.values():
        problem.pop("model")
    document["paths"].setdefault("/entries", {})["post"] = {
        "summary": "Journal entries",
        "description": "Answers once every entry is in the write-ahead log and synced. A request "
        "is atomic. Sending it again with the same request_uuids is safe.",
        "operationId": "append_entries",
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": body, "example": _EXAMPLE}, **binary},
        },
        "responses": {
            "200": {
                "description": "Durable",
                "content": {
                    JSON: {"schema": answer, "example": _EXAMPLE_ANSWER},
                    "application/msgpack": {"schema": answer},
                },
            },
            **{str(status): problem for status, problem in problems.items()},
        },
    }
    return document


def _schema_of(kind: type) -> dict[str, Any]:
    lengths: dict[type, int] = {Address: ADDRESS_BYTES, Hash32: HASH_BYTES}
    length = lengths[kind]
    return {
        "type": "string",
        "pattern": f"^0x[0-9a-fA-F]{{{2 * length}}}$",
        "description": f"{length} bytes as 0x hex text; bin in MessagePack",
    }
