"""Refusals: the problem document in both formats, and that nothing was written (section 2).

Conflicts are in `test_duplicates`, what an outage causes is in the tests of that outage.
"""

import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgpack
import pytest

from tests.support.http_entries import (
    JSON,
    MSGPACK,
    PROBLEM_JSON,
    decoded,
    durable_offset,
    json_entry,
    metric,
    msgpack_entry,
    packed,
    post,
    refused,
)
from tests.support.service import Service

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_written(client: httpx.Client) -> Iterator[None]:
    """The log must end where it ended before."""
    before = durable_offset(client)
    yield
    assert durable_offset(client) == before


@pytest.fixture(params=[JSON, MSGPACK])
def accept(request: pytest.FixtureRequest) -> str:
    """The format a problem is asked for in."""
    accepted_type: str = request.param
    return accepted_type


def send(
    client: httpx.Client, content: Any, content_type: str = JSON, **headers: str
) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/entries", content=content, headers={"content-type": content_type, **names})


def answered_early(service: Service, http2: bool, content: bytes, accept: str) -> httpx.Response:
    """The answer to a body of which the server reads nothing.

    httpcore now and then loses track of an HTTP/2 stream that is answered while it still sends.
    """
    for _ in range(5):
        with service.client(http2=http2) as client, suppress(httpx.LocalProtocolError):
            return send(client, content, accept=accept)
    raise AssertionError("five times, the client library did not get to the answer")


def problem(
    response: httpx.Response, error_code: int, accept: str, *, retriable: bool = False
) -> dict[str, Any]:
    """The problem in `response`, which must be in the format that was asked for."""
    expected = MSGPACK if accept == MSGPACK else PROBLEM_JSON
    assert response.headers["content-type"] == expected
    return refused(response, error_code, retriable=retriable)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b""),
        (JSON, b"{"),
        (JSON, b"\xff\xfe"),
        (JSON, b'{"entries": [\xc3\x28]}'),
        (JSON, b'{"entries": NaN}'),
        (MSGPACK, b""),
        (MSGPACK, b"\xc1"),
        pytest.param(MSGPACK, packed(msgpack_entry())[:-1], id="msgpack-cut"),
        pytest.param(MSGPACK, packed(msgpack_entry()) + b"\x00", id="msgpack-trailing"),
    ],
)
def test_400_a_body_that_does_not_decode(
    client: httpx.Client, content_type: str, body: bytes, accept: str
) -> None:
    problem(send(client, body, content_type, accept=accept), 40001, accept)


def test_400_a_body_that_is_nested_too_deeply(client: httpx.Client, accept: str) -> None:
    digest = {"symbols": {"x": "here"}}
    in_json = json.dumps({"entries": [json_entry(pre_digest=digest)]}).encode()
    in_msgpack = packed(msgpack_entry(pre_digest=digest))
    for content_type, body in (
        (JSON, in_json.replace(b'"here"', b"[" * 100_000 + b"]" * 100_000)),
        (MSGPACK, in_msgpack.replace(msgpack.packb("here"), b"\x91" * 100_000 + b"\x01")),
    ):
        found = problem(send(client, body, content_type, accept=accept), 40001, accept)
        assert "nested" in found["detail"]


@pytest.mark.parametrize(
    "body",
    [b"not gzip", gzip.compress(b"{}")[:-3], gzip.compress(b"{}") + b"tail"],
    ids=["not gzip", "cut", "trailing"],
)
def test_400_a_body_that_is_not_the_gzip_it_says(client: httpx.Client, body: bytes) -> None:
    refused(send(client, body, content_encoding="gzip"), 40001)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_415_another_content_type(client: httpx.Client, content_type: str, accept: str) -> None:
    body = json.dumps({"entries": [json_entry()]}).encode()
    found = problem(send(client, body, content_type, accept=accept), 41501, accept)
    assert JSON in found["detail"]


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_415_another_content_encoding(client: httpx.Client, encoding: str, accept: str) -> None:
    body = json.dumps({"entries": [json_entry()]}).encode()
    response = send(client, body, content_encoding=encoding, accept=accept)
    assert "gzip" in problem(response, 41502, accept)["detail"]


@pytest.mark.parametrize("http2", [False, True])
def test_413_a_body_that_says_it_is_too_large(
    shared_service: Service, accept: str, http2: bool
) -> None:
    response = answered_early(shared_service, http2, bytes(16 * MIB + 1), accept)
    assert str(16 * MIB) in problem(response, 41301, accept)["detail"]


def test_413_is_answered_before_a_body_that_says_it_is_too_large_is_sent(
    shared_service: Service,
) -> None:
    with socket.create_connection(("127.0.0.1", shared_service.port), 10) as connection:
        connection.sendall(
            b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 99999999999\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("http2", [False, True])
def test_413_a_body_that_turns_out_to_be_too_large(
    shared_service: Service, accept: str, http2: bool
) -> None:
    """No length is announced: chunks in HTTP/1.1, frames in HTTP/2."""

    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(MIB)

    with shared_service.client(http2=http2) as client:
        problem(send(client, chunks(), accept=accept), 41301, accept)


def test_413_a_body_that_unpacks_to_too_much(client: httpx.Client, accept: str) -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    assert len(bomb) < 100_000
    problem(send(client, bomb, content_encoding="gzip", accept=accept), 41301, accept)


def test_413_more_entries_than_max_entries(client: httpx.Client, accept: str) -> None:
    """The shared service takes 200; broken entries are not looked at then."""
    for entry in (json_entry(), {}):
        body = json.dumps({"entries": [entry] * 201}).encode()
        found = problem(send(client, body, accept=accept), 41302, accept)
        assert "201" in found["detail"]
        assert "200" in found["detail"]


@pytest.mark.parametrize(
    "body", [{}, {"entries": []}, {"entries": {}}, {"entries": [], "more": 1}, [], "entries", None]
)
def test_422_a_body_that_is_not_a_list_of_entries(
    client: httpx.Client, body: Any, accept: str
) -> None:
    for content_type, content in (
        (JSON, json.dumps(body).encode()),
        (MSGPACK, msgpack.packb(body)),
    ):
        problem(send(client, content, content_type, accept=accept), 42201, accept)


def test_422_names_entry_and_path_of_every_fault(client: httpx.Client, accept: str) -> None:
    event = {"event_topic": "", "event_data": "", "event_type": "Filled"}
    entries = [
        json_entry(),
        json_entry(received_ts_ms=-1),
        json_entry(events=[{**event, "event_topic": "fine"}, event]),
        json_entry(order_id=2**63),
        json_entry(extra=1),
        {},
        json_entry(
            events=[{**event, "event_topic": "nul\0"}],
        ),
    ]
    body = json.dumps({"entries": entries}).encode()
    found = problem(send(client, body, accept=accept), 42201, accept)
    assert all(error.keys() == {"entry", "path", "message"} for error in found["errors"])
    assert all(error["message"] for error in found["errors"])
    assert [(error["entry"], error["path"]) for error in found["errors"]] == [
        (1, "received_ts_ms"),
        (2, "events[1].event_topic"),
        (3, "order_id"),
        (4, ""),
        (5, ""),
        (6, "events[0].event_topic"),
    ]


def test_422_lists_a_hundred_faults_at_most(client: httpx.Client) -> None:
    response = post(client, *(json_entry(received_ts_ms=-1) for _ in range(150)))
    assert [error["entry"] for error in refused(response, 42201)["errors"]] == list(range(100))


def test_422_one_bad_entry_refuses_the_good_ones_beside_it(client: httpx.Client) -> None:
    good = [json_entry(), json_entry()]
    refused(post(client, good[0], json_entry(command_data=""), good[1]), 42201)
    for entry in good:
        refused(client.get(f"/entries/{entry['request_uuid']}"), 40402)


@pytest.mark.parametrize("timeout_s", ["-1", "soon", "inf", "nan", "1e9"])
def test_422_a_timeout_that_is_none(client: httpx.Client, timeout_s: str, accept: str) -> None:
    response = client.post("/flush", params={"timeout_s": timeout_s}, headers={"accept": accept})
    assert "timeout_s" in problem(response, 42202, accept)["detail"]


def test_422_a_request_uuid_that_is_none(client: httpx.Client, accept: str) -> None:
    response = client.get("/entries/not-a-uuid", headers={"accept": accept})
    assert "request_uuid" in problem(response, 42202, accept)["detail"]


def test_404_an_entry_that_nobody_sent(client: httpx.Client, accept: str) -> None:
    uuid = uuid4()
    response = client.get(f"/entries/{uuid}", headers={"accept": accept})
    assert str(uuid) in problem(response, 40402, accept)["detail"]


@pytest.mark.parametrize("path", ["/nothing", "/entries/", "/entries/1/2", "/checkpoint/", "//"])
def test_404_a_path_that_is_none(client: httpx.Client, path: str, accept: str) -> None:
    url = f"{str(client.base_url).rstrip('/')}{path}"
    for method in ("GET", "POST"):
        problem(client.request(method, url, headers={"accept": accept}), 40401, accept)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/entries", "POST"),
        ("PUT", "/entries", "POST"),
        ("OPTIONS", "/entries", "POST"),
        ("GET", "/flush", "POST"),
        ("POST", "/checkpoint", "GET, HEAD"),
        ("DELETE", f"/entries/{UUID(int=1)}", "GET, HEAD"),
        ("OPTIONS", "/healthz", "GET, HEAD"),
        ("PROPFIND", "/metrics", "GET, HEAD"),
    ],
)
def test_405_names_the_methods_that_are_allowed(
    client: httpx.Client, method: str, path: str, allowed: str, accept: str
) -> None:
    response = client.request(method, path, headers={"accept": accept})
    problem(response, 40501, accept)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/checkpoint", "/openapi.json", "/docs"])
def test_head_is_get_without_the_body(shared_service: Service, path: str, http2: bool) -> None:
    with shared_service.client(http2=http2) as client:
        head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_a_refusal_over_http_2_leaves_the_connection_usable(shared_service: Service) -> None:
    with shared_service.client(http2=True) as client:
        for _ in range(3):
            refused(send(client, b"{"), 40001)
            refused(send(client, bytes(16 * MIB + 1)), 41301)
        assert decoded(client.get("/healthz")) == {"status": "ok"}


def test_refusals_are_counted_by_their_reason(client: httpx.Client) -> None:
    name = "ht_journal_rejected_total"
    before = metric(client, name, reason="unsupported_media_type")
    refused(send(client, b"{}", "text/plain"), 41501)
    assert metric(client, name, reason="unsupported_media_type") == before + 1
