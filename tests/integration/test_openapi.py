"""The OpenAPI document tells the truth about the running service."""

import json
import re
from base64 import b64encode
from typing import Any, Final

import httpx
import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import sampled_from
from schemathesis import Case, DeserializationContext, GenerationMode, SerializationContext
from schemathesis.checks import not_a_server_error
from schemathesis.core.transport import Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.api.formats import MSGPACK_TYPES
from tests.support.http_entries import MSGPACK, accepted, decoded
from tests.support.service import Service

CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# The calls that have parameters or a body, which could be wrong.
WITH_INPUT: Final = [
    ("POST", "/entries"),
    ("GET", "/entries/{request_uuid}"),
    ("POST", "/flush"),
    ("GET", "/blocks"),
    ("GET", "/blocks/{height}"),
    ("GET", "/blocks/{height}/commands"),
    ("GET", "/proofs/inclusion"),
    ("GET", "/proofs/consistency"),
]
OPERATIONS: Final = [
    *WITH_INPUT,
    ("GET", "/blocks/latest"),
    ("GET", "/authorities"),
    ("GET", "/checkpoint"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]


@schemathesis.serializer(*MSGPACK_TYPES)
def in_messagepack(ctx: SerializationContext, value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, default=str)
    return packed


@schemathesis.deserializer(MSGPACK)
def from_messagepack(ctx: DeserializationContext, response: Response) -> Any:
    # What the document describes is the answer in JSON, where bytes are base64.
    return json.loads(json.dumps(msgpack.unpackb(response.content), default=_base64))


def _base64(value: bytes) -> str:
    return b64encode(value).decode()


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def test_the_document_holds_every_call(document: dict[str, Any]) -> None:
    calls = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    # A stream never ends: what it sends has tests of its own.
    assert calls == {*OPERATIONS, ("GET", "/blocks/stream")}


def test_patterns_are_written_as_json_schema_reads_them(document: dict[str, Any]) -> None:
    r"""Python's `\Z` for the end of a text is a plain Z elsewhere."""
    event = document["components"]["schemas"]["Event"]["properties"]["event_type"]
    assert event["pattern"] == "^[A-Za-z][A-Za-z0-9_]{0,63}$"
    assert r"\Z" not in str(document)


def test_the_page_for_people_is_served(client: httpx.Client) -> None:
    response = client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "openapi.json" in response.text
    loaded = re.findall(r'(?:src|href)="([^"]*)"', response.text)
    assert len(loaded) == 3
    for url in loaded:
        assert "://" not in url, "a page that others have a say in"
        assert client.get(f"/{url}").status_code == 200, url


def test_the_examples_of_post_entries_are_what_the_service_takes_and_gives(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    call = document["paths"]["/entries"]["post"]
    example = call["requestBody"]["content"]["application/json"]["example"]
    answer = accepted(client.post("/entries", json=example))
    documented = call["responses"]["200"]["content"]["application/json"]["example"]
    assert answer.keys() == documented.keys()
    assert answer["count"] == documented["count"] == len(example["entries"])


@pytest.mark.parametrize(
    "status",
    ["200", "400", "401", "403", "408", "409", "413", "415", "422", "429", "503", "507"],
)
def test_post_entries_documents_every_status_in_both_formats(
    document: dict[str, Any], status: str
) -> None:
    response = document["paths"]["/entries"]["post"]["responses"][status]
    text = "application/json" if status == "200" else "application/problem+json"
    assert response["content"].keys() == {text, MSGPACK}
    assert ("Retry-After" in response.get("headers", {})) == (status in ("429", "503"))


def test_every_call_says_which_scope_it_needs_and_how_it_is_refused(
    document: dict[str, Any],
) -> None:
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for method, path in [*OPERATIONS, ("GET", "/blocks/stream")]:
        call = document["paths"][path][method.lower()]
        if path in ("/healthz", "/readyz"):
            assert call["security"] == []
            assert not {"401", "403"} & call["responses"].keys()
            continue
        scope = "write" if method == "POST" else "read"
        # This service has no tokens, and so needs none.
        assert call["security"] == [{"bearer": [scope]}, {}]
        for status in ("401", "403"):
            assert "WWW-Authenticate" in call["responses"][status]["headers"]


VALID, INVALID = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("mode", "method", "path"),
    [
        *((VALID, method, path) for method, path in OPERATIONS),
        *((INVALID, method, path) for method, path in WITH_INPUT),
    ],
)
def test_no_server_error_and_no_undocumented_answer(
    shared_service: Service, mode: GenerationMode, method: str, path: str
) -> None:
    """Requests are generated from the document; what it forbids must be refused."""
    schema = schemathesis.openapi.from_url(f"{shared_service.url}/openapi.json")
    checks = CHECKS if mode is VALID else [*CHECKS, negative_data_rejection]

    @settings(
        max_examples=20 if path == "/entries" else 10,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=schema[path][method].as_strategy(mode),
        accept=sampled_from(["application/json", MSGPACK]),
    )
    def check(case: Case[Any], accept: str) -> None:
        timeout_s = case.query.get("timeout_s")
        if isinstance(timeout_s, float | int) and 0 <= timeout_s < 5:
            case.query["timeout_s"] = 5  # or a 504 would be right
        case.call_and_validate(headers={"Accept": accept}, checks=checks)

    check()


def test_every_answer_is_a_map_of_the_same_names_in_both_formats(client: httpx.Client) -> None:
    for path in ("/checkpoint", "/healthz", "/readyz"):
        in_json = decoded(client.get(path))
        in_msgpack = decoded(client.get(path, headers={"accept": MSGPACK}))
        assert in_json.keys() == in_msgpack.keys()
