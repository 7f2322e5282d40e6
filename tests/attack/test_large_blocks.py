"""A block as large as one request makes it: read by many, not taken, and given up."""

import json
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final

import httpx
import msgspec
import pytest

from tests.attack.conftest import NO_DATABASE
from tests.support.honest_client import HonestClient
from tests.support.http_entries import MSGPACK, metric, msgpack_entry, post_msgpack
from tests.support.raw_http import RawConnection, RawHttp2
from tests.support.service import Service
from tests.support.waiting import wait_for

ENTRIES: Final = 10_000
ENTRY_BYTES: Final = 1300
PATH: Final = "/blocks/0/commands?content=true"
CALL: Final = f"GET {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
# So few that what waits for all of them together is borne.
READERS: Final = 3
ABSENT: Final = 8
STREAMS: Final = 50


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Its first block is large."""
    folder = tmp_path_factory.mktemp("large")
    settings = {"ALLOW_NEW_WAL": "true", "BLOCK_COMMANDS": "*"}
    with Service(folder / "data", NO_DATABASE, **settings) as service:
        service.start()
        data = bytes([1]) * ENTRY_BYTES
        with service.client() as client:
            entries = (msgpack_entry(command_type="Any", command_data=data) for _ in range(ENTRIES))
            assert post_msgpack(client, *entries).status_code == 200
        yield service
        assert "Traceback" not in service.log


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


def test_it_is_one_document_in_both_formats(client: httpx.Client) -> None:
    in_json = client.get(PATH)
    document = in_json.json()
    assert len(document["commands"]) == ENTRIES
    data = b64encode(bytes([1]) * ENTRY_BYTES).decode()
    assert {command["command_data"] for command in document["commands"]} == {data}
    assert [each["leaf_index"] for each in document["commands"]] == list(range(ENTRIES))
    assert msgspec.json.encode(document) == in_json.content
    in_msgpack = client.get(PATH, headers={"accept": MSGPACK})
    assert msgspec.to_builtins(msgspec.msgpack.decode(in_msgpack.content)) == document
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(in_msgpack.content)) == in_msgpack.content
    head = client.head(PATH)
    assert head.headers["content-length"] == str(len(in_json.content))
    assert head.headers["etag"] == in_json.headers["etag"] != in_msgpack.headers["etag"]
    without = client.get("/blocks/0/commands")
    for command in document["commands"]:
        for name in ("command_data", "events", "identity_derived"):
            del command[name]
    assert without.content == json.dumps(document, separators=(",", ":")).encode()


def test_many_that_read_it_at_once_get_all_of_it_and_others_go_on(service: Service) -> None:
    def read(client: httpx.Client) -> bytes:
        return client.get(PATH).content

    with HonestClient(service) as honest, ThreadPoolExecutor(READERS) as threads, ExitStack() as s:
        clients = [s.enter_context(service.client()) for _ in range(READERS)]
        found = list(threads.map(read, clients))
        honest.goes_on()
    assert len(found[0]) > ENTRIES * ENTRY_BYTES
    assert set(found) == {found[0]}


def test_those_that_take_nothing_are_cut_off_and_keep_no_place(
    service: Service, client: httpx.Client
) -> None:
    told = len(service.log)
    with HonestClient(service) as honest, ExitStack() as stack:
        absent = [stack.enter_context(RawConnection(service.port)) for _ in range(ABSENT)]
        for reader in absent:
            reader.send(CALL)
        wait_for(lambda: "cut off" in service.log[told:], "those that take least are cut off")
        assert len(client.get(PATH).json()["commands"]) == ENTRIES
        honest.goes_on()


def test_what_is_given_up_is_made_no_further(service: Service, client: httpx.Client) -> None:
    def given_up() -> float:
        return metric(
            client, "http_requests_total", handler="/blocks/{height}/commands", status="4xx"
        )

    before = given_up()
    with RawHttp2(service.port) as attacker:
        calls = [attacker.headers("GET", PATH, end=True) for _ in range(STREAMS)]
        attacker.send(b"".join(call for _, call in calls))
        assert attacker.is_served()  # all have begun: else the HTTP layer would end the connection
        attacker.send(b"".join(attacker.reset(stream) for stream, _ in calls[: STREAMS // 2]))
        assert attacker.is_served()
    # The last few may have been made by then.
    most = STREAMS - ABSENT
    wait_for(lambda: given_up() - before > most, "those that left are answered to nobody")
    assert len(client.get(PATH).json()["commands"]) == ENTRIES
