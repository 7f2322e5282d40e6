"""`POST /entries` over real sockets: formats, protocols, sizes, concurrency (section 2)."""

import asyncio
import gzip
import json
import socket
from base64 import b64encode
from collections.abc import Iterator
from itertools import pairwise
from uuid import UUID, uuid4

import httpx
import msgpack
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import query, value
from tests.support.http_entries import (
    JSON,
    MSGPACK,
    accepted,
    checkpoint,
    durable_offset,
    flush,
    json_entry,
    metric,
    msgpack_entry,
    packed,
    post,
    post_msgpack,
    refused,
)
from tests.support.service import Service
from tests.support.waiting import wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def h2_client(shared_service: Service) -> Iterator[httpx.Client]:
    with shared_service.client(http2=True) as client:
        yield client


async def send_at_once(service: Service, bodies: list[bytes]) -> list[httpx.Response]:
    """Send each body in a stream of its own of one HTTP/2 connection."""
    headers = {"content-type": MSGPACK, "accept": MSGPACK}
    async with httpx.AsyncClient(
        base_url=service.url, http1=False, http2=True, timeout=60, trust_env=False
    ) as client:
        await client.get("/healthz")  # connect first, or each would try to
        return await asyncio.gather(
            *(client.post("/entries", content=body, headers=headers) for body in bodies)
        )


def test_the_acknowledgement_says_what_was_journaled_where(client: httpx.Client) -> None:
    before = durable_offset(client)
    answer = accepted(post(client, *(json_entry() for _ in range(3))))
    assert answer.keys() == {
        "count",
        "first_command_id",
        "last_command_id",
        "wal_offset",
        "block_height",
        "duplicates",
    }
    assert answer["count"] == 3
    assert answer["last_command_id"] - answer["first_command_id"] == 2
    assert answer["duplicates"] == []
    assert answer["block_height"] is None
    assert before < answer["wal_offset"] == durable_offset(client)


def test_command_ids_and_offsets_only_ever_grow(client: httpx.Client) -> None:
    answers = [accepted(post(client, json_entry(), json_entry())) for _ in range(5)]
    for earlier, later in pairwise(answers):
        assert earlier["last_command_id"] < later["first_command_id"]
        assert earlier["wal_offset"] < later["wal_offset"]


def test_json_and_messagepack_put_the_same_entry_into_postgres(
    client: httpx.Client, shared_database_url: str
) -> None:
    address, digest = bytes(range(20)), bytes(range(32))
    event = {"event_topic": "fills", "event_type": "Filled", "l2_sequence": 7}
    update = {
        "balance_update_seq": 1,
        "delta": "-1.25",
        "balance_after": "98.750",
        "reason": "Fee",
        "timestamp_ms": 5,
    }
    in_json = json_entry(
        command_data=b64encode(b"\x01\xc4\x00").decode(),
        events=[{**event, "event_data": b64encode(b"data").decode()}],
        balance_updates=[{**update, "wallet": "0x" + address.hex()}],
        command_identity_hash="0x" + digest.hex(),
    )
    in_msgpack = msgpack_entry(
        command_data=b"\x01\xc4\x00",
        events=[{**event, "event_data": b"data"}],
        balance_updates=[{**update, "wallet": address}],
        command_identity_hash=digest,
    )
    first = accepted(post(client, in_json))["first_command_id"]
    second = accepted(post_msgpack(client, in_msgpack))["first_command_id"]
    flush(client)
    rows = query(
        shared_database_url,
        """
        SELECT command_data, command_identity_hash, event_topic, event_data, l2_sequence,
            wallet, delta, balance_after, source_command_id = command_id
        FROM engine_commands JOIN engine_events USING (environment, command_id)
            JOIN balance_updates USING (environment, command_id)
        WHERE command_id IN ($1, $2)
        """,
        first,
        second,
    )
    assert len(rows) == 2
    assert rows[0] == rows[1]
    assert rows[0][:6] == (b"\x01\xc4\x00", digest, "fills", b"data", 7, address)
    assert [str(amount) for amount in rows[0][6:8]] == ["-1.25", "98.750"]
    assert rows[0][8] is True


@pytest.mark.parametrize("name", ["application/x-msgpack", "application/vnd.msgpack", MSGPACK])
def test_every_name_of_messagepack_is_understood_in_both_directions(
    client: httpx.Client, name: str
) -> None:
    headers = {"content-type": name, "accept": name}
    response = client.post("/entries", content=packed(msgpack_entry()), headers=headers)
    assert accepted(response)["count"] == 1
    assert response.headers["content-type"] == MSGPACK


@pytest.mark.parametrize(
    "content_type", [JSON, f"{JSON}; charset=utf-8", f'{JSON};charset="UTF-8"']
)
def test_json_may_say_that_it_is_utf_8(client: httpx.Client, content_type: str) -> None:
    body = json.dumps({"entries": [json_entry(command_type=None)]})
    headers = {"content-type": content_type}
    assert accepted(client.post("/entries", content=body, headers=headers))["count"] == 1


@pytest.mark.parametrize("as_text", [True, False])
def test_a_uuid_in_messagepack_may_be_text_or_bytes(client: httpx.Client, as_text: bool) -> None:
    uuid = uuid4()
    answer = accepted(
        post_msgpack(client, msgpack_entry(request_uuid=str(uuid) if as_text else uuid))
    )
    found = client.get(f"/entries/{uuid}").json()
    assert found["command_id"] == answer["first_command_id"]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("*/*", JSON),
        ("text/html", JSON),
        (MSGPACK, MSGPACK),
        (f"{JSON};q=0.5, {MSGPACK};q=0.9", MSGPACK),
        (f"{MSGPACK};q=0.5, {JSON}", JSON),
        (f"{MSGPACK};q=0", JSON),
    ],
)
def test_answers_are_json_unless_messagepack_is_preferred(
    shared_service: Service, accept: str | None, expected: str
) -> None:
    headers = {} if accept is None else {"accept": accept}
    with shared_service.client() as client:
        del client.headers["accept"]
        for response in (
            client.post("/entries", json={"entries": [json_entry()]}, headers=headers),
            client.get("/checkpoint", headers=headers),
            client.get("/healthz", headers=headers),
        ):
            assert response.headers["content-type"] == expected


def test_problems_are_messagepack_where_that_is_preferred(client: httpx.Client) -> None:
    for response in (
        post_msgpack(client, msgpack_entry(received_ts_ms=-1)),
        client.get(f"/entries/{uuid4()}", headers={"accept": MSGPACK}),
    ):
        assert response.headers["content-type"] == MSGPACK
        assert msgpack.unpackb(response.content)["status"] == response.status_code


def test_gzip_is_undone(client: httpx.Client) -> None:
    entries = [json_entry() for _ in range(50)]
    body = gzip.compress(json.dumps({"entries": entries}).encode())
    for encoding in ("gzip", "GZIP"):
        response = client.post(
            "/entries", content=body, headers={"content-type": JSON, "content-encoding": encoding}
        )
        assert accepted(response)["count"] == 50


def test_a_gzip_body_may_have_several_members(client: httpx.Client) -> None:
    text = json.dumps({"entries": [json_entry() for _ in range(50)]}).encode()
    body = gzip.compress(text[:100]) + gzip.compress(text[100:])
    headers = {"content-type": JSON, "content-encoding": "gzip"}
    assert accepted(client.post("/entries", content=body, headers=headers))["count"] == 50


def test_http_2_with_prior_knowledge_on_the_port_of_http_1(
    client: httpx.Client, h2_client: httpx.Client
) -> None:
    entry = json_entry()
    over_h1, over_h2 = post(client, entry), post(h2_client, entry)
    assert (over_h1.http_version, over_h2.http_version) == ("HTTP/1.1", "HTTP/2")
    [duplicate] = accepted(over_h2)["duplicates"]
    assert duplicate["command_id"] == accepted(over_h1)["first_command_id"]


@pytest.mark.parametrize("http2", [True, False])
def test_the_largest_body_is_journaled_and_replicated_whole(
    shared_service: Service, shared_database_url: str, http2: bool
) -> None:
    entries = [msgpack_entry(command_data=b"\x01" + bytes(MIB - 1)) for _ in range(15)]
    room = 16 * MIB - len(packed(*entries, msgpack_entry()))
    entries.append(msgpack_entry(command_data=b"\x02" * (room - 1)))
    assert len(packed(*entries)) == 16 * MIB
    with shared_service.client(http2=http2) as client:
        answer = accepted(post_msgpack(client, *entries))
        assert answer["last_command_id"] - answer["first_command_id"] == 15
        flush(client)
    size = value(
        shared_database_url,
        "SELECT sum(length(command_data)) FROM engine_commands WHERE command_id BETWEEN $1 AND $2",
        answer["first_command_id"],
        answer["last_command_id"],
    )
    assert size == 15 * MIB + room - 1


def test_two_hundred_concurrent_streams_of_a_connection_are_all_acknowledged(
    shared_service: Service,
) -> None:
    bodies = [packed(msgpack_entry(), msgpack_entry()) for _ in range(200)]
    answers = [accepted(response) for response in asyncio.run(send_at_once(shared_service, bodies))]
    given = {
        command_id
        for answer in answers
        for command_id in range(answer["first_command_id"], answer["last_command_id"] + 1)
    }
    assert len(given) == 400


def test_a_client_that_goes_away_in_mid_body_writes_nothing_and_harms_nobody(
    shared_service: Service, client: httpx.Client
) -> None:
    before = durable_offset(client)
    body = json.dumps({"entries": [json_entry()]}).encode()
    with socket.create_connection(("127.0.0.1", shared_service.port), 10) as connection:
        connection.sendall(
            b"POST /entries HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body[:-5]
        )
    assert durable_offset(client) == before
    accepted(post(client, json_entry()))


def test_an_entry_is_in_postgres_as_it_was_acknowledged(
    client: httpx.Client, shared_database_url: str
) -> None:
    entries = [json_entry(order_id=number) for number in range(20)]
    answer = accepted(post(client, *entries))
    position = flush(client)
    assert position["wal_offset"] >= answer["wal_offset"]
    assert position["last_command_id"] >= answer["last_command_id"]
    rows = query(
        shared_database_url,
        "SELECT command_id, request_uuid, order_id FROM engine_commands"
        " WHERE command_id BETWEEN $1 AND $2 ORDER BY command_id",
        answer["first_command_id"],
        answer["last_command_id"],
    )
    first = answer["first_command_id"]
    assert rows == [
        (first + index, UUID(entry["request_uuid"]), index) for index, entry in enumerate(entries)
    ]


def test_a_full_queue_answers_503_and_loses_nothing_that_it_took(
    make_service: MakeService, database_url: str
) -> None:
    """One request waits while the writer is at work on another; the next find the queue full."""
    service = make_service(CHANNEL_CAPACITY=1).start()
    large = [packed(*(msgpack_entry(command_data=b"\x01" * MIB) for _ in range(8)))]
    small = [packed(msgpack_entry()) for _ in range(50)]
    acknowledged: set[int] = set()
    full: list[httpx.Response] = []

    def some_are_refused() -> bool:
        for response in asyncio.run(send_at_once(service, large + small)):
            if response.status_code == 503:
                full.append(response)
            else:
                answer = accepted(response)
                acknowledged.update(duplicate["command_id"] for duplicate in answer["duplicates"])
                if answer["first_command_id"] is not None:
                    acknowledged.update(
                        range(answer["first_command_id"], answer["last_command_id"] + 1)
                    )
        return bool(full)

    wait_for(some_are_refused, "requests meet a full queue")
    assert "queue is full" in refused(full[0], 50301, retriable=True)["detail"]
    assert acknowledged
    with service.client() as client:
        assert metric(client, "ht_journal_rejected_total", reason="unavailable") == len(full)
        flush(client)
    assert acknowledged == {
        row[0] for row in query(database_url, "SELECT command_id FROM engine_commands")
    }


def test_checkpoint_json_on_disk_is_the_checkpoint(
    client: httpx.Client, shared_service: Service
) -> None:
    accepted(post(client, json_entry()))
    flush(client)

    def equal() -> bool:
        on_disk = json.loads((shared_service.data_dir / "checkpoint.json").read_bytes())
        answer = checkpoint(client)
        named = ("wal_id", "environment", "wal_offset", "last_command_id", "last_l2_seq")
        return all(on_disk[name] == answer[name] for name in named)

    wait_for(equal, "the file equals the answer")
