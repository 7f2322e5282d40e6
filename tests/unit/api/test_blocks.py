"""`/blocks`, `/blocks/latest`, `/blocks/{height}`, its commands, `/authorities`: what they say."""

from base64 import b64decode
from typing import Any
from uuid import UUID

import httpx
import msgpack
import msgspec
import pytest
from msgspec.structs import replace

from app.api.block_answers import BLOCK_EXAMPLE, DELEGATION_EXAMPLE
from app.chain.authority import InvalidSignature, check_authentic
from app.chain.header import Delegation, Header, Roots, batch_root, block_hash
from app.model.entry import Entry, Hash32
from tests.support.block_chain import SIGNER, make_delegation
from tests.support.block_service import BlockService, serving
from tests.support.http_entries import MSGPACK, refused
from tests.support.journal_entries import make_entry, make_event

IMMUTABLE = "max-age=31536000, immutable"
NUMBERS = ("batch_seq", "command_count", "first_seq", "timestamp")


def tick(**fields: Any) -> Entry:
    return make_entry(**{"command_type": "TickSnapshot", **fields})


async def make_blocks(service: BlockService, count: int) -> None:
    await service.commit_all([(tick(),) for _ in range(count)])


async def get(client: httpx.AsyncClient, path: str, **query: Any) -> dict[str, Any]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def raw(answer: dict[str, Any], *names: str) -> dict[str, Any]:
    return {
        name: bytes.fromhex(answer[name][2:]) if isinstance(answer[name], str) else answer[name]
        for name in names
    }


def header_in(answer: dict[str, Any]) -> Header:
    return Header(**raw(answer, *Header.__struct_fields__))


def roots_in(answer: dict[str, Any]) -> Roots:
    return Roots(**raw(answer, *Roots.__struct_fields__))


async def heights(client: httpx.AsyncClient, **query: Any) -> tuple[list[int], int | None]:
    page = await get(client, "/blocks", **query)
    assert page.keys() == {"blocks", "next"}
    return [block["batch_seq"] for block in page["blocks"]], page["next"]


# -- one block -------------------------------------------------------------------------------------


async def test_a_block_has_the_fields_of_the_page_and_its_hash_follows_from_them(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    service.sign()
    await service.commit(make_entry(), tick(received_ts_ms=5), tick(), make_entry(received_ts_ms=9))
    answer = await get(client, "/blocks/0")
    assert list(answer) == list(BLOCK_EXAMPLE)
    header = header_in(answer)
    assert answer["block_hash"] == "0x" + block_hash(header).hex()
    assert header.batch_root == batch_root(0, roots_in(answer))
    assert (header.command_count, header.first_seq, header.timestamp) == (2, 0, 9)
    assert (header.signer, header.signature) == (SIGNER, b"\x07" * 65)
    assert (answer["first_command_id"], answer["last_command_id"]) == (2, 3)


async def test_an_unsigned_block_says_so(service: BlockService, client: httpx.AsyncClient) -> None:
    await service.commit(tick())
    answer = await get(client, "/blocks/0")
    assert (answer["signer"], answer["signature"]) == ("0x" + "00" * 20, "0x")


async def test_a_block_can_be_read_once_its_batch_is_acknowledged(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    for height in range(5):
        appended = await service.commit(tick())
        assert appended.block_height == height
        assert (await get(client, f"/blocks/{height}")) == (await get(client, "/blocks/latest"))


async def test_a_batch_without_block_commands_is_no_block(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await service.commit(make_entry(command_type="CreateOrder"))
    problem = refused(await client.get("/blocks/latest"), 40403)
    assert problem["detail"] == "there is no block at height 0: there is none yet"


@pytest.mark.parametrize("path", ["/blocks/2", "/blocks/2/commands", f"/blocks/{2**63 - 1}"])
async def test_no_block_at_a_height_is_a_404_that_nobody_may_keep(
    service: BlockService, client: httpx.AsyncClient, path: str
) -> None:
    await make_blocks(service, 2)
    response = await client.get(path)
    assert "the newest is 1" in refused(response, 40403)["detail"]
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/blocks/-1",
        "/blocks/x",
        f"/blocks/{2**63}",
        "/blocks/-1/commands",
        "/blocks/0/commands?content=perhaps",
        "/blocks?after=-1",
        "/blocks?after=x",
        f"/blocks?after={2**63}",
        "/blocks?limit=0",
        "/blocks?limit=1001",
        "/blocks?order=down",
    ],
)
async def test_bad_parameters_are_refused(client: httpx.AsyncClient, path: str) -> None:
    refused(await client.get(path), 42202)


async def test_a_store_that_lacks_durable_blocks_does_not_say_that_they_are_not_there(
    service: BlockService, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.commit(tick())
    monkeypatch.setattr(service.producer, "_starved", True)
    for path in ("/blocks/1", f"/proofs/inclusion?request_uuid={UUID(int=1)}"):
        refused(await client.get(path), 50303, retriable=True)
    assert (await client.get("/blocks/0")).status_code == 200


async def test_a_store_that_is_closed_is_a_503(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await service.commit(tick())
    service.store.close()
    refused(await client.get("/blocks/0"), 50303, retriable=True)


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ([0, 1, 2, 3, 4], None)),
        ({"limit": 2}, ([0, 1], 1)),
        ({"after": 1, "limit": 2}, ([2, 3], 3)),
        ({"after": 3, "limit": 2}, ([4], None)),
        ({"after": 2, "limit": 2}, ([3, 4], None)),
        ({"after": 4}, ([], None)),
        ({"after": 99}, ([], None)),
        ({"order": "desc"}, ([4, 3, 2, 1, 0], None)),
        ({"order": "desc", "limit": 2}, ([4, 3], 3)),
        ({"order": "desc", "after": 3, "limit": 2}, ([2, 1], 1)),
        ({"order": "desc", "after": 1, "limit": 2}, ([0], None)),
        ({"order": "desc", "after": 2, "limit": 2}, ([1, 0], None)),
        ({"order": "desc", "after": 0}, ([], None)),
        ({"order": "desc", "after": 99, "limit": 1}, ([4], 4)),
    ],
)
async def test_after_is_a_height_that_is_not_part_of_the_answer(
    service: BlockService,
    client: httpx.AsyncClient,
    query: dict[str, Any],
    expected: tuple[list[int], int | None],
) -> None:
    await make_blocks(service, 5)
    assert await heights(client, **query) == expected


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_following_next_gives_every_block_once(
    service: BlockService, client: httpx.AsyncClient, order: str
) -> None:
    await make_blocks(service, 11)
    found: list[int] = []
    query: dict[str, Any] = {"order": order, "limit": 3}
    while True:
        page, after = await heights(client, **query)
        found += page
        if after is None:
            break
        query["after"] = after
    assert found == (list(range(11)) if order == "asc" else list(range(10, -1, -1)))


async def test_no_block_yet_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert await heights(client) == ([], None)
    assert await heights(client, order="desc") == ([], None)


async def test_a_listed_block_is_the_block(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 3)
    page = await get(client, "/blocks")
    assert page["blocks"] == [await get(client, f"/blocks/{height}") for height in range(3)]


async def test_the_largest_page_is_a_thousand_blocks(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1001)
    assert (await heights(client, limit=1000))[1] == 999
    assert len((await heights(client))[0]) == 100


async def test_a_page_and_commands_that_are_made_in_parts_are_one_document(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 150)
    await service.commit(*(tick() for _ in range(150)))
    for path in ("/blocks?limit=150", "/blocks/150/commands", "/blocks/150/commands?content=true"):
        in_json = await client.get(path)
        document = in_json.json()
        assert in_json.content == msgspec.json.encode(document)
        in_msgpack = await client.get(path, headers={"accept": MSGPACK})
        assert in_msgpack.content == msgspec.msgpack.encode(
            msgspec.msgpack.decode(in_msgpack.content)
        )
        (items,) = (value for value in document.values() if isinstance(value, list))
        assert len(items) == 150
        if "content" not in path:
            assert msgspec.msgpack.decode(in_msgpack.content) == document
        for response in (in_json, in_msgpack):
            headers = {
                "accept": response.headers["content-type"],
                "if-none-match": response.headers["etag"],
            }
            assert (await client.get(path, headers=headers)).status_code == 304
    assert in_json.headers["etag"] != in_msgpack.headers["etag"]
    page = (await client.get("/blocks?limit=150")).json()
    assert page["next"] == page["blocks"][-1]["batch_seq"] == 149


# -- commands --------------------------------------------------------------------------------------


async def test_commands_are_those_of_the_block_with_their_leaves(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await service.commit(tick())
    entries = [
        tick(),
        make_entry(command_type="Other"),
        tick(command_identity_hash=Hash32(b"\x07" * 32)),
    ]
    await service.commit(*entries)
    answer = await get(client, "/blocks/1/commands")
    block = await get(client, "/blocks/1")
    assert (answer["height"], answer["block_hash"]) == (1, block["block_hash"])
    assert [list(command) for command in answer["commands"]] == [
        ["command_id", "request_uuid", "command_type", "command_identity_hash", "leaf_index"]
    ] * 2
    first, second = answer["commands"]
    assert (first["command_id"], first["leaf_index"]) == (2, 1)
    assert first["request_uuid"] == str(entries[0].request_uuid)
    assert first["command_type"] == "TickSnapshot"
    assert (second["command_id"], second["leaf_index"]) == (4, 2)
    assert second["command_identity_hash"] == "0x" + "07" * 32


async def test_content_is_what_was_journaled_in_both_formats(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    sent = [
        tick(
            command_data=b"\x01\xff\x00",
            events=[
                make_event("a", event_key="k", l2_sequence=-3),
                make_event("b", event_data=b""),
            ],
        ),
        tick(command_identity_hash=Hash32(b"\x07" * 32)),
        tick(command_identity_hash=Hash32(bytes(32))),
    ]
    await service.commit(*sent)
    response = await client.get("/blocks/0/commands", params={"content": "true"})
    in_json = response.json()["commands"]
    response = await client.get(
        "/blocks/0/commands", params={"content": "true"}, headers={"accept": MSGPACK}
    )
    in_msgpack = msgpack.unpackb(response.content)["commands"]
    for answer in in_json:
        answer["command_data"] = b64decode(answer["command_data"])
        for event in answer["events"]:
            event["event_data"] = b64decode(event["event_data"])
    assert in_json == in_msgpack
    assert [answer["command_data"] for answer in in_json] == [each.command_data for each in sent]
    assert in_json[0]["events"] == [
        {
            "event_topic": "a",
            "event_key": "k",
            "event_data": b"\x01\x90",
            "l2_sequence": -3,
            "event_type": "Filled",
        },
        {
            "event_topic": "b",
            "event_key": None,
            "event_data": b"",
            "l2_sequence": None,
            "event_type": "Filled",
        },
    ]
    assert [answer["identity_derived"] for answer in in_json] == [True, False, True]


async def test_content_that_neither_log_nor_postgres_has_is_a_503(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await service.commit(tick())
    service.retained = service.store.wal_offset
    response = await client.get("/blocks/0/commands", params={"content": "true"})
    assert "block 0" in refused(response, 50304, retriable=True)["detail"]
    assert (await client.get("/blocks/0/commands")).status_code == 200


# -- authorities -----------------------------------------------------------------------------------


async def test_authorities_are_the_delegations_newest_first(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    assert await get(client, "/authorities") == {"authorities": []}
    for valid_from in (5, 6):
        service.sign(make_delegation(valid_from, delegate=bytes([valid_from]) * 20))
        await service.commit(tick())
        await service.commit(tick())
    found = (await get(client, "/authorities"))["authorities"]
    assert [list(each) for each in found] == [list(DELEGATION_EXAMPLE)] * 2
    assert [each["valid_from"] for each in found] == [6, 5]
    assert found[0]["valid_until"] == 1006
    assert found[0]["signature"] == "0x" + "0d" * 65


def test_the_documented_block_is_authentic() -> None:
    header = header_in(BLOCK_EXAMPLE)
    assert BLOCK_EXAMPLE["block_hash"] == "0x" + block_hash(header).hex()
    assert header.batch_root == batch_root(0, roots_in(BLOCK_EXAMPLE))
    delegation = Delegation(**raw(DELEGATION_EXAMPLE, *Delegation.__struct_fields__))
    check_authentic(header, [delegation], delegation.delegator, strict=True)
    with pytest.raises(InvalidSignature):
        check_authentic(replace(header, timestamp=1), [delegation], delegation.delegator)


# -- what may be kept ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "immutable"),
    [
        ("/blocks/0", True),
        ("/blocks/4", True),
        ("/blocks/0/commands", True),
        ("/blocks/0/commands?content=true", True),
        ("/blocks/latest", False),
        ("/authorities", False),
        ("/blocks", False),
        ("/blocks?limit=4", True),
        ("/blocks?limit=5", False),
        ("/blocks?after=2&limit=1", True),
        ("/blocks?after=3", False),
        ("/blocks?order=desc&limit=1", False),
        ("/blocks?order=desc&after=3&limit=1", True),
        ("/blocks?order=desc&after=3", True),
        ("/blocks?order=desc&after=5", True),
        ("/blocks?order=desc&after=6", False),
        ("/blocks?order=desc&after=0", True),
    ],
)
async def test_only_what_newer_blocks_can_not_change_is_immutable(
    service: BlockService, client: httpx.AsyncClient, path: str, immutable: bool
) -> None:
    await make_blocks(service, 5)
    before = await client.get(path)
    assert before.status_code == 200
    assert before.headers["cache-control"] == (IMMUTABLE if immutable else "no-cache")
    assert before.headers["vary"] == "Accept"
    service.sign()
    await make_blocks(service, 2)
    after = await client.get(path)
    same = after.content == before.content
    assert same or not immutable
    assert (after.headers["etag"] == before.headers["etag"]) is same


@pytest.mark.parametrize(
    "path", ["/blocks/0", "/blocks/latest", "/blocks", "/blocks/0/commands", "/authorities"]
)
@pytest.mark.parametrize("accept", ["application/json", MSGPACK])
async def test_a_client_that_has_the_answer_gets_a_304(
    service: BlockService, client: httpx.AsyncClient, path: str, accept: str
) -> None:
    await make_blocks(service, 1)
    first = await client.get(path, headers={"accept": accept})
    tag = first.headers["etag"]
    assert tag[0] == tag[-1] == '"'
    for held in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = await client.get(path, headers={"accept": accept, "if-none-match": held})
        assert (again.status_code, again.content) == (304, b"")
        for name in ("etag", "cache-control", "vary"):
            assert again.headers[name] == first.headers[name]
        assert "content-type" not in again.headers
    for held in ('"other"', tag.replace('"', ""), tag[:-2] + '"'):
        again = await client.get(path, headers={"accept": accept, "if-none-match": held})
        assert (again.status_code, again.content) == (200, first.content)


async def test_each_format_has_its_own_tag(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1)
    in_json = await client.get("/blocks/0")
    assert in_json.headers["etag"] == f'"{in_json.json()["block_hash"]}"'
    headers = {"accept": MSGPACK, "if-none-match": in_json.headers["etag"]}
    in_msgpack = await client.get("/blocks/0", headers=headers)
    assert in_msgpack.status_code == 200
    assert msgpack.unpackb(in_msgpack.content) == in_json.json()


async def test_a_held_content_is_confirmed_even_where_it_can_not_be_had_any_more(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1)
    first = await client.get("/blocks/0/commands?content=true")
    service.retained = service.store.wal_offset
    headers = {"if-none-match": first.headers["etag"]}
    again = await client.get("/blocks/0/commands?content=true", headers=headers)
    assert again.status_code == 304


async def test_the_blocks_of_an_earlier_life_are_served(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await service.commit(tick(), tick())
    before = await get(client, "/blocks")
    content = await get(client, "/blocks/0/commands", content="true")
    await service.close()
    later = BlockService(service.settings.data_dir)
    try:
        async with serving(later) as other:
            assert await get(other, "/blocks") == before
            assert await get(other, "/blocks/0/commands", content="true") == content
    finally:
        await later.close()
