"""The OpenAPI of `POST /entries`, which the framework does not see.

Made from the msgspec types themselves.
"""

from typing import Any, Final
from uuid import UUID

import msgspec

from app.api.answers import ProblemDocument, documented
from app.api.formats import JSON, MSGPACK, MSGPACK_TYPES
from app.api.problems import PROBLEM_JSON
from app.api.security import describe_security
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


def complete(
    document: dict[str, Any], max_entries: int, *, tokens_enforced: bool
) -> dict[str, Any]:
    """Add what the framework can't know: `POST /entries`, problems, tokens, MessagePack."""
    problem = ProblemDocument.model_json_schema(ref_template=_REF.replace("name", "model"))
    document["components"]["schemas"] |= problem.pop("$defs") | {"ProblemDocument": problem}
    _add_append(document, max_entries)
    describe_security(document, enforced=tokens_enforced)
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if answer := content.get(JSON) or content.get(PROBLEM_JSON):
                    content[MSGPACK] = {"schema": answer["schema"]}
    return document


def _add_append(document: dict[str, Any], max_entries: int) -> None:
    (body, answer), components = msgspec.json.schema_components(
        (AppendRequest, AppendAnswer), schema_hook=_schema_of, ref_template=_REF
    )
    for name, schema in components.items():
        if name not in ("AppendAnswer", "DuplicateAnswer"):
            schema["additionalProperties"] = False
        schema.pop("title", None)
        _make_patterns_portable(schema)
    components["AppendRequest"]["properties"]["entries"] |= {"minItems": 1, "maxItems": max_entries}
    document["components"]["schemas"] |= components
    binary = {name: {"schema": body} for name in sorted(MSGPACK_TYPES)}
    problems = documented(400, 408, 409, 413, 415, 422, 429, 503, 507)
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
                "content": {JSON: {"schema": answer, "example": _EXAMPLE_ANSWER}},
            },
            **{str(status): problem for status, problem in problems.items()},
        },
    }


def _make_patterns_portable(schema: Any) -> None:
    r"""Write `$` for Python's `\Z`, which JSON Schema does not know."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            _make_patterns_portable(part)
    if isinstance(schema, dict) and isinstance(pattern := schema.get("pattern"), str):
        schema["pattern"] = pattern.replace(r"\Z", "$")


def _schema_of(kind: type) -> dict[str, Any]:
    lengths: dict[type, int] = {Address: ADDRESS_BYTES, Hash32: HASH_BYTES}
    length = lengths[kind]
    return {
        "type": "string",
        "pattern": f"^0x[0-9a-fA-F]{{{2 * length}}}$",
        "description": f"{length} bytes as 0x hex text; bin in MessagePack",
    }
