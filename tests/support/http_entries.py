"""Entries as clients send them, and what every refusal looks like."""

from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import msgpack
from prometheus_client.parser import text_string_to_metric_families

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
PROBLEM_JSON: Final = "application/problem+json"
COMMAND: Final = b"\x01\x80"


def json_entry(**fields: Any) -> dict[str, Any]:
    """The smallest entry in JSON, save for `fields`."""
    return {
        "request_uuid": str(uuid4()),
        "received_ts_ms": 1_700_000_000_000,
        "command_data": b64encode(COMMAND).decode(),
        **fields,
    }


def msgpack_entry(**fields: Any) -> dict[str, Any]:
    """The smallest entry in MessagePack, save for `fields`; a UUID goes out as 16 bytes."""
    fields.setdefault("request_uuid", uuid4())
    entry = {"received_ts_ms": 1_700_000_000_000, "command_data": COMMAND, **fields}
    if isinstance(entry["request_uuid"], UUID):
        entry["request_uuid"] = entry["request_uuid"].bytes
    return entry


def post(client: httpx.Client, *entries: Mapping[str, Any]) -> httpx.Response:
    """Send entries in JSON."""
    return client.post("/entries", json={"entries": entries})


def post_msgpack(client: httpx.Client, *entries: Mapping[str, Any]) -> httpx.Response:
    """Send entries in MessagePack, and ask for the answer in it."""
    headers = {"content-type": MSGPACK, "accept": MSGPACK}
    return client.post("/entries", content=packed(*entries), headers=headers)


def packed(*entries: Mapping[str, Any]) -> bytes:
    """A MessagePack body."""
    body: bytes = msgpack.packb({"entries": entries})
    return body


def accepted(response: httpx.Response) -> dict[str, Any]:
    """The acknowledgement in `response`, in whichever format."""
    assert response.status_code == 200, response.text
    return decoded(response)


def decoded(response: httpx.Response) -> dict[str, Any]:
    """The map in an answer."""
    content_type = response.headers["content-type"]
    if content_type == MSGPACK:
        answer: dict[str, Any] = msgpack.unpackb(response.content)
    else:
        assert content_type in (JSON, PROBLEM_JSON), content_type
        answer = response.json()
    return answer


def refused(
    response: httpx.Response, error_code: int, *, retriable: bool = False
) -> dict[str, Any]:
    """The problem in `response`, after checking all that every problem has (RFC 9457)."""
    assert response.status_code == error_code // 100, response.text
    assert response.headers["content-type"] in (PROBLEM_JSON, MSGPACK)
    problem = decoded(response)
    members = {"type", "title", "status", "detail", "error_code", "message", "retriable"}
    assert problem.keys() - {"errors"} == members
    assert problem["type"].startswith("urn:journal:problem:")
    assert problem["title"]
    assert problem["status"] == response.status_code
    assert problem["detail"]
    assert problem["message"] == problem["detail"]
    assert problem["error_code"] == error_code
    assert problem["retriable"] is retriable
    if response.status_code in (429, 503):
        assert int(response.headers["retry-after"]) > 0
    return problem


def checkpoint(client: httpx.Client) -> dict[str, Any]:
    """The answer to `GET /checkpoint`."""
    response = client.get("/checkpoint")
    assert response.status_code == 200, response.text
    return decoded(response)


def durable_offset(client: httpx.Client) -> int:
    """How far the log is durable: it moves when anything is written."""
    return int(checkpoint(client)["durable_offset"])


def flush(client: httpx.Client, timeout_s: float = 30) -> dict[str, Any]:
    """Wait until all is replicated; the checkpoint."""
    response = client.post("/flush", params={"timeout_s": timeout_s}, timeout=timeout_s + 30)
    assert response.status_code == 200, response.text
    return decoded(response)


def metric(client: httpx.Client, name: str, **labels: str) -> float:
    """The value of one sample of `/metrics`; 0 while there is none."""
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return 0.0
