"""Hostile bodies against the real service: a 4xx, at once, and in bounded memory.

Measured is the worker's peak (VmHWM). The service takes bodies of 16 MiB, as it does by default.
"""

import gzip
import json
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from random import randbytes
from typing import Any, Final

import httpx
import msgpack
import pytest

from tests.attack.conftest import NO_DATABASE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import (
    JSON,
    MSGPACK,
    accepted,
    json_entry,
    msgpack_entry,
    packed,
    refused,
)
from tests.support.service import Service
from tests.support.worker_memory import WorkerMemory

MIB = 1 << 20
MAX_BODY_BYTES: Final = 16 * MIB
MAX_ANSWER_BYTES: Final = 64 << 10
PLACE: Final = "PLACE"


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def send(
    client: httpx.Client, content: Any, content_type: str = MSGPACK, **headers: str
) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post("/entries", content=content, headers={"content-type": content_type, **names})


def filled(unit: bytes, size_bytes: int = MAX_BODY_BYTES - 500, **fields: Any) -> bytes:
    """A body of one entry with a list of as many times `unit` as fit, in place of `PLACE`."""
    count = size_bytes // len(unit)
    body = packed(msgpack_entry(**fields))
    place = msgpack.packb(PLACE)
    assert body.count(place) == 1
    return body.replace(place, b"\xdd" + count.to_bytes(4) + unit * count)


def symbols(value: Any) -> dict[str, Any]:
    return {"pre_digest": {"symbols": {"a": value}}}


def in_json(unit: bytes, **fields: Any) -> bytes:
    body = json.dumps({"entries": [json_entry(**fields)]}).encode()
    count = (MAX_BODY_BYTES - 500) // (len(unit) + 1)
    return body.replace(b'"PLACE"', b"[" + b",".join([unit] * count) + b"]")


def zeros_as_gzip(size_bytes: int) -> bytes:
    """So many zeros in a thousandth of their size, but for the checksum, which nobody gets to."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first, other = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + other * (size_bytes // MIB - 1)


def withdrawal(wallet: str) -> dict[str, Any]:
    amounts = {"amount": "1", "balance_after": "1"}
    effect = {"wallet": wallet, "request_id": "r", "timestamp_ms": 1, **amounts}
    return msgpack_entry(cash_withdrawal_side_effect=effect)


def opaque(count: int, size_bytes: int, **fields: Any) -> list[dict[str, Any]]:
    """So many entries of data that nothing makes smaller."""
    return [msgpack_entry(command_data=randbytes(size_bytes), **fields) for _ in range(count)]


def event(topic: str, key: str = "k") -> dict[str, Any]:
    return {"event_topic": topic, "event_key": key, "event_data": b"a", "event_type": "A"}


def as_json(entry: dict[str, Any], *, escaped: bool = False) -> bytes:
    content = {"entries": [entry]}
    return json.dumps(content, ensure_ascii=escaped, separators=(",", ":")).encode()


# Beyond U+FFFF: one is enough for Python to take four bytes for each character of a text.
WIDE: Final = "\U0001f600"
SHORT: Final = "x" * 36
LONG: Final = "1" * (MAX_BODY_BYTES - 500)
EVENT = msgpack.packb({"event_topic": "aa", "event_data": b"aa", "event_type": "Aa"})
MANY = (MAX_BODY_BYTES - 20).to_bytes(4)

BOMBS: Final[dict[str, tuple[Callable[[], bytes], str, int]]] = {
    "empty maps for entries": (
        lambda: b"\x81\xa7entries\xdd" + MANY + b"\x80" * (MAX_BODY_BYTES - 20), MSGPACK, 413),
    "empty maps for entries, in json": (
        lambda: b'{"entries":[' + b"{}," * 5_000_000 + b"{}]}", JSON, 413),
    "empty maps in symbols": (lambda: filled(b"\x80", **symbols(PLACE)), MSGPACK, 413),
    "empty maps in symbols, as many as pass unseen": (
        lambda: filled(b"\x80", MAX_BODY_BYTES // 32 - 500, **symbols(PLACE)), MSGPACK, 200),
    "small maps in symbols": (lambda: filled(b"\x81\xa0\x80", **symbols(PLACE)), MSGPACK, 413),
    "numbers in symbols": (lambda: filled(b"\x01", **symbols(PLACE)), MSGPACK, 413),
    "empty maps in symbols, in json": (lambda: in_json(b"{}", **symbols(PLACE)), JSON, 413),
    "a little in each entry": (
        lambda: packed(*[msgpack_entry(**symbols([{}] * 1500))] * 9000), MSGPACK, 413),
    "a little in each entry, and a fault in the last": (
        lambda: packed(
            *[msgpack_entry(**symbols([{}] * 1500))] * 9000, msgpack_entry(pre_digest=1)
        ), MSGPACK, 413),
    "in place of a hash": (lambda: filled(b"\x80", command_identity_hash=PLACE), MSGPACK, 413),
    "events": (lambda: filled(EVENT, events=PLACE), MSGPACK, 413),
    "numbers for entries": (lambda: filled(b"\x01", more=PLACE)[:-1], MSGPACK, 413),
    "random bytes in many entries": (lambda: packed(*opaque(10_000, 1500)), MSGPACK, 200),
    "random bytes in many entries, in json": (
        lambda: json.dumps({"entries": [
            json_entry(command_data=b64encode(randbytes(1100)).decode()) for _ in range(9900)
        ]}, separators=(",", ":")).encode(), JSON, 200),
    "block commands of many events": (
        lambda: packed(*opaque(
            8000, 100, command_type="TickSnapshot", events=[event("fills", "k" * 200)] * 4
        )), MSGPACK, 200),
    "an array of 4 GiB": (lambda: b"\x81\xa7entries\xdd\xff\xff\xff\xff", MSGPACK, 413),
    "a map of 4 GiB": (lambda: b"\xdf\xff\xff\xff\xff", MSGPACK, 400),
    "bytes of 4 GiB": (lambda: b"\x81\xa7entries\x91\xc6\xff\xff\xff\xff", MSGPACK, 422),
    "text of 4 GiB": (lambda: b"\x81\xdb\xff\xff\xff\xff", MSGPACK, 400),
    "nested lists": (lambda: filled(b"\x91", **symbols(PLACE)), MSGPACK, 413),
    "nested lists alone": (lambda: b"\x91" * (MAX_BODY_BYTES - 20), MSGPACK, 413),
    "nested lists, in json": (lambda: b"[" * (MAX_BODY_BYTES - 20), JSON, 413),
    "one long text": (lambda: b'{"entries":["' + b"x" * (MAX_BODY_BYTES - 20) + b'"]}', JSON, 422),
    "one long number": (lambda: b'{"entries":[' + b"9" * MIB + b"]}", JSON, 422),
    "an unknown field with a long name": (
        lambda: packed(msgpack_entry(**{LONG: 1})), MSGPACK, 422),
    "an unknown field with a long name, in json": (
        lambda: json.dumps({"entries": [json_entry(**{LONG: 1})]}).encode(), JSON, 422),
    "an unknown key of the body": (lambda: json.dumps({LONG: 1}).encode(), JSON, 422),
    "hex of any length for an address": (lambda: packed(withdrawal("0x" + LONG)), MSGPACK, 422),
    "a wide name of an unknown field": (
        lambda: packed(msgpack_entry(**{LONG + WIDE: 1})), MSGPACK, 413),
    "a wide name of an unknown field, in json": (
        lambda: as_json(json_entry(**{LONG + WIDE: 1})), JSON, 413),
    "a wide text in symbols": (
        lambda: packed(msgpack_entry(**symbols(LONG + WIDE))), MSGPACK, 413),
    "a wide name in symbols": (
        lambda: packed(msgpack_entry(pre_digest={"symbols": {LONG + WIDE: 1}})), MSGPACK, 413),
    "a wide topic": (lambda: packed(msgpack_entry(events=[event(LONG + WIDE)])), MSGPACK, 413),
    "a wide command_type": (lambda: packed(msgpack_entry(command_type=LONG + WIDE)), MSGPACK, 413),
    "a wide command_type, in json": (
        lambda: as_json(json_entry(command_type=LONG + WIDE)), JSON, 413),
    "wide texts": (
        lambda: packed(msgpack_entry(**symbols([SHORT + WIDE] * 348_000))), MSGPACK, 413),
    "wide texts, in json": (
        lambda: as_json(json_entry(**symbols([SHORT + WIDE] * 348_000))), JSON, 413),
    "wide texts, escaped in json": (
        lambda: as_json(json_entry(**symbols([SHORT + WIDE] * 310_000)), escaped=True), JSON, 413),
    "wide texts in many entries": (
        lambda: packed(*[msgpack_entry(**symbols([SHORT + WIDE] * 34))] * 9900), MSGPACK, 413),
    "wide topics and keys of events": (
        lambda: packed(
            *[msgpack_entry(events=[event("t" * 200 + WIDE, "k" * 800 + WIDE)] * 15)] * 1000
        ), MSGPACK, 413),
    "short texts": (lambda: packed(msgpack_entry(**symbols([SHORT] * 348_000))), MSGPACK, 413),
    "short texts, in json": (
        lambda: as_json(json_entry(**symbols([SHORT] * 340_000))), JSON, 413),
    "short texts in many entries": (
        lambda: packed(*[msgpack_entry(**symbols(["x" * 30] * 5200))] * 100), MSGPACK, 413),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_no_body_takes_more_than_four_times_the_limit(service: Service, name: str) -> None:
    """Over HTTP/2, of which the server keeps more."""
    make, content_type, status = BOMBS[name]
    body = make()
    assert len(body) <= MAX_BODY_BYTES
    memory = WorkerMemory(service.worker_pid)
    with service.client(http2=True) as client:
        response = send(client, body, content_type)
    if status == 200:
        accepted(response)
    else:
        assert response.status_code in {status, 400}, response.text[:1000]
    assert len(response.content) < MAX_ANSWER_BYTES
    assert memory.extra_bytes <= 4 * MAX_BODY_BYTES


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize(
    "name",
    [
        "random bytes in many entries",
        "random bytes in many entries, in json",
        "block commands of many events",
    ],
)
def test_nor_does_the_first_body_of_a_service(tmp_path: Path, name: str, encoding: str) -> None:
    """Nothing is kept yet that it could use."""
    make, content_type, _ = BOMBS[name]
    body = make() if encoding == "identity" else gzip.compress(make(), 1)
    with Service(tmp_path / "data", NO_DATABASE, ALLOW_NEW_WAL="true") as service:
        memory = WorkerMemory(service.start().worker_pid)
        with service.client(http2=True) as client:
            accepted(send(client, body, content_type, content_encoding=encoding))
        assert memory.extra_bytes <= 4 * MAX_BODY_BYTES, memory.extra_bytes


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(zeros_as_gzip(MAX_BODY_BYTES + MIB), id="little-more"),
        pytest.param(zeros_as_gzip(2 << 30), id="much-more"),
        pytest.param(gzip.compress(bytes(MIB)) * 500, id="many-members"),
    ],
)
def test_what_gzip_hides_is_never_unpacked_beyond_the_limit(
    service: Service, client: httpx.Client, bomb: bytes
) -> None:
    memory = WorkerMemory(service.worker_pid)
    refused(send(client, bomb, JSON, content_encoding="gzip"), 41301)
    assert memory.extra_bytes <= 4 * MAX_BODY_BYTES


@pytest.mark.parametrize(
    "name",
    ["empty maps in symbols", "numbers in symbols", "one long text", "wide texts, escaped in json"],
)
def test_what_gzip_hides_takes_no_more_than_four_times_the_limit(
    service: Service, client: httpx.Client, name: str
) -> None:
    make, content_type, status = BOMBS[name]
    body = gzip.compress(make())
    memory = WorkerMemory(service.worker_pid)
    response = send(client, body, content_type, content_encoding="gzip")
    assert response.status_code == status, response.text
    assert memory.extra_bytes <= 4 * MAX_BODY_BYTES


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
@pytest.mark.parametrize("entries", [15, 10_000])
@pytest.mark.parametrize("http", ["http1", "http2"])
def test_honest_bodies_of_nearly_the_limit_are_taken(
    service: Service, http: str, entries: int, encoding: str
) -> None:
    """In a few large entries, or in as many as may be; compressed it is hardly smaller.

    Sent again, each is compared with its record.
    """
    data = randbytes(MIB if entries == 15 else 1200)
    body = packed(
        *(
            msgpack_entry(
                command_data=data,
                events=[
                    {"event_topic": "fills", "event_data": b"\x80" * 20, "event_type": "Filled"},
                    event("заказы", f"№ 7 {WIDE}"),
                ],
                pre_digest={"next_order_id": 7, "symbols": {"BTC": {"имя": f"монета {WIDE}"}}},
            )
            for _ in range(entries)
        )
    )
    assert len(body) <= MAX_BODY_BYTES
    if encoding == "gzip":
        body = gzip.compress(body, 1)
    with service.client(http2=http == "http2") as client:
        for repeated in (0, entries):
            memory = WorkerMemory(service.worker_pid)
            answer = accepted(send(client, body, content_encoding=encoding))
            assert len(answer["duplicates"]) == repeated
            assert memory.extra_bytes <= 4 * MAX_BODY_BYTES, memory.extra_bytes


ENTRY = packed(msgpack_entry(command_type="zzz"))
TEXT = json.dumps({"entries": [json_entry(command_type="zzz")]}).encode()


def in_symbols(value: bytes) -> bytes:
    body = packed(msgpack_entry(**symbols("zzz")))
    return body.replace(b"\xa3zzz", value)


def digits(count: int) -> dict[str, Any]:
    """A withdrawal whose amount has so many digits."""
    amounts = {"amount": "9" * count, "balance_after": "1"}
    withdrawal = {"wallet": "0x" + "11" * 20, "request_id": "r", "timestamp_ms": 1, **amounts}
    return json_entry(cash_withdrawal_side_effect=withdrawal)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        pytest.param(ENTRY.replace(b"zzz", b"z\xffz"), MSGPACK, 400, id="utf-8, msgpack"),
        pytest.param(TEXT.replace(b"zzz", b"z\xffz"), JSON, 400, id="utf-8, json"),
        pytest.param(TEXT.replace(b"zzz", b"\\ud800"), JSON, 400, id="surrogate, json"),
        pytest.param(in_symbols(b"\xa3\xed\xa0\x80"), MSGPACK, 400, id="surrogate, msgpack"),
        pytest.param(in_symbols(b"\xa1\x00"), MSGPACK, 422, id="NUL"),
        pytest.param(in_symbols(b"\xcb\x7f\xf8" + bytes(6)), MSGPACK, 422, id="NaN"),
        pytest.param(in_symbols(b"\xcb\x7f\xf0" + bytes(6)), MSGPACK, 422, id="infinity"),
        pytest.param(TEXT.replace(b'"zzz"', b"NaN"), JSON, 400, id="NaN, json"),
        pytest.param(in_symbols(b"\xcf" + b"\xff" * 8), MSGPACK, 422, id="2**64-1"),
        pytest.param(TEXT.replace(b'"zzz"', b"9" * 5000), JSON, 422, id="a number of 5000 digits"),
        pytest.param(in_symbols(b"\xd6\xff" + bytes(4)), MSGPACK, 422, id="timestamp"),
        pytest.param(in_symbols(b"\xd4\x05\x00"), MSGPACK, 422, id="extension"),
        pytest.param(in_symbols(b"\xc4\x01\x00"), MSGPACK, 422, id="bytes"),
        pytest.param(in_symbols(b"\x81\x01\x02"), MSGPACK, 422, id="a key that is no text"),
        pytest.param(in_symbols(b"\xc1"), MSGPACK, 400, id="never used"),
        pytest.param(ENTRY + b"\xc0", MSGPACK, 400, id="trailing"),
        pytest.param(TEXT + b"{}", JSON, 400, id="trailing, json"),
        pytest.param(ENTRY, JSON, 400, id="msgpack for json"),
        pytest.param(TEXT, MSGPACK, 422, id="json for msgpack"),
        pytest.param(b"\xef\xbb\xbf" + TEXT, JSON, 400, id="byte order mark"),
        pytest.param(TEXT.decode().encode("utf-16"), JSON, 400, id="utf-16"),
        pytest.param(json.dumps({"entries": [digits(5000)]}).encode(), JSON, 422, id="digits"),
        pytest.param(gzip.compress(TEXT), JSON, 400, id="gzip that does not say so"),
        pytest.param(TEXT, "application/json; charset=utf-16", 415, id="charset"),
        pytest.param(TEXT, "multipart/form-data; boundary=x", 415, id="form"),
        pytest.param(TEXT, "application/cbor", 415, id="cbor"),
    ],
)
def test_what_is_not_an_entry_is_a_4xx(
    client: httpx.Client, body: bytes, content_type: str, status: int
) -> None:
    response = send(client, body, content_type)
    assert response.status_code == status, response.text


def test_of_a_key_that_comes_twice_the_last_value_counts_in_both_formats(
    client: httpx.Client,
) -> None:
    entry = json_entry()
    name = "received_ts_ms"
    in_text = json.dumps({"entries": [entry]}).replace(f'"{name}"', f'"{name}": 1, "{name}"')
    sent = accepted(send(client, in_text, JSON))
    uuid = bytes.fromhex(entry["request_uuid"].replace("-", ""))
    body = packed(msgpack_entry(request_uuid=uuid))
    first = msgpack.packb(name) + b"\x01"
    twice = body.replace(b"\x91\x83", b"\x91\x84" + first)
    assert twice != body
    (duplicate,) = accepted(send(client, twice))["duplicates"]
    assert duplicate["command_id"] == sent["first_command_id"]


def test_a_body_that_trickles_in_holds_nobody_up(service: Service) -> None:
    def slowly(honest: HonestClient) -> Iterator[bytes]:
        for byte in packed(msgpack_entry()):
            yield bytes([byte])
            if not byte:
                honest.goes_on(1)

    with HonestClient(service) as honest, service.client() as client:
        accepted(send(client, slowly(honest)))
