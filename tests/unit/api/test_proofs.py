"""Proofs: verified from the answers alone, at every size; and why there is none."""

from typing import Any
from uuid import UUID, uuid4

import httpx
import msgpack
import pytest

from app.api.proofs import ConsistencyAnswer, InclusionAnswer
from app.chain.merkle import verify_consistency, verify_inclusion
from app.model.entry import Entry
from tests.support.block_service import BlockService
from tests.support.http_entries import MSGPACK, refused
from tests.support.journal_entries import make_entry

SIZES = (1, 2, 1, 4, 3, 7)
IMMUTABLE = "max-age=31536000, immutable"


def tick() -> Entry:
    return make_entry(command_type="TickSnapshot")


def from_hex(text: str) -> bytes:
    assert text.startswith("0x")
    return bytes.fromhex(text[2:])


async def make_blocks(service: BlockService, *sizes: int) -> list[list[Entry]]:
    batches = [[tick() for _ in range(size)] for size in sizes]
    await service.commit_all([tuple(batch) for batch in batches])
    return batches


def includes(proof: dict[str, Any]) -> bool:
    return verify_inclusion(
        from_hex(proof["command_identity_hash"]),
        proof["leaf_index"],
        proof["tree_size"],
        [from_hex(node) for node in proof["path"]],
        from_hex(proof["root"]),
    )


def is_consistent(proof: dict[str, Any]) -> bool:
    return verify_consistency(
        proof["first_size"],
        proof["second_size"],
        from_hex(proof["first_root"]),
        from_hex(proof["second_root"]),
        [from_hex(node) for node in proof["path"]],
    )


async def test_every_command_is_proven_to_be_in_every_later_block(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    batches = await make_blocks(service, *SIZES)
    blocks = (await client.get("/blocks")).json()["blocks"]
    leaf = 0
    for first, batch in enumerate(batches):
        for entry in batch:
            for height in range(first, len(batches)):
                query = f"request_uuid={entry.request_uuid}&height={height}"
                response = await client.get(f"/proofs/inclusion?{query}")
                proof = response.json()
                assert list(proof) == list(InclusionAnswer.model_fields)
                assert proof["request_uuid"] == str(entry.request_uuid)
                assert (proof["leaf_index"], proof["height"]) == (leaf, height)
                assert proof["tree_size"] == sum(SIZES[: height + 1])
                assert proof["root"] == blocks[height]["command_root"]
                assert includes(proof)
                assert response.headers["cache-control"] == IMMUTABLE
            leaf += 1


async def test_a_proof_without_a_height_is_as_of_the_newest_block(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    ((entry,),) = await make_blocks(service, 1)
    tags = set()
    for height in range(3):
        response = await client.get(f"/proofs/inclusion?request_uuid={entry.request_uuid}")
        assert response.json()["height"] == height
        assert includes(response.json())
        assert response.headers["cache-control"] == "no-cache"
        tags.add(response.headers["etag"])
        await make_blocks(service, 2)
    assert len(tags) == 3


async def test_the_proof_of_another_leaf_proves_nothing(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    ((one, other),) = await make_blocks(service, 2)
    proofs = [
        (await client.get(f"/proofs/inclusion?request_uuid={entry.request_uuid}")).json()
        for entry in (one, other)
    ]
    assert not includes({**proofs[0], "path": proofs[1]["path"]})


async def test_every_pair_of_blocks_is_proven_to_be_consistent(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, *SIZES)
    blocks = (await client.get("/blocks")).json()["blocks"]
    for second in range(len(SIZES)):
        for first in range(second + 1):
            response = await client.get(f"/proofs/consistency?from={first}&to={second}")
            proof = response.json()
            names = ConsistencyAnswer.model_fields.items()
            assert list(proof) == [field.alias or name for name, field in names]
            assert (proof["from"], proof["to"]) == (first, second)
            assert proof["first_size"] == sum(SIZES[: first + 1])
            assert proof["second_size"] == sum(SIZES[: second + 1])
            assert proof["first_root"] == blocks[first]["command_root"]
            assert proof["second_root"] == blocks[second]["command_root"]
            assert is_consistent(proof)
            assert bool(proof["path"]) is (first != second)
            assert response.headers["cache-control"] == IMMUTABLE


@pytest.mark.parametrize("path", ["inclusion?height=0&request_uuid={}", "consistency?from=0&to=1"])
async def test_proofs_are_confirmed_by_their_tag_and_come_in_messagepack_too(
    service: BlockService, client: httpx.AsyncClient, path: str
) -> None:
    ((entry, _), _) = await make_blocks(service, 2, 1)
    url = "/proofs/" + path.format(entry.request_uuid)
    first = await client.get(url)
    again = await client.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    packed = await client.get(url, headers={"accept": MSGPACK})
    assert msgpack.unpackb(packed.content) == first.json()
    assert packed.headers["etag"] != first.headers["etag"]


async def test_a_command_that_came_again_is_proven_by_its_first_leaf(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    """Behind the duplicate window an entry is journaled again."""
    ((entry,), _) = await make_blocks(service, 1, 1)
    service.writer.index._known.clear()  # noqa: SLF001 - as if the window had passed
    appended = await service.commit(entry)
    assert appended.block_height == 2
    proof = (await client.get(f"/proofs/inclusion?request_uuid={entry.request_uuid}")).json()
    assert (proof["leaf_index"], proof["tree_size"]) == (0, 3)
    assert includes(proof)


# -- why there is no proof -------------------------------------------------------------------------


async def test_an_unknown_request_uuid_is_a_404(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1)
    uuid = uuid4()
    response = await client.get(f"/proofs/inclusion?request_uuid={uuid}")
    assert str(uuid) in refused(response, 40402)["detail"]
    assert response.headers["cache-control"] == "no-store"


async def test_an_entry_that_no_block_covers_is_a_404_of_its_own(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1)
    entry = make_entry(command_type="CreateOrder")
    await service.commit(entry)
    response = await client.get(f"/proofs/inclusion?request_uuid={entry.request_uuid}")
    assert "no block covers it" in refused(response, 40404)["detail"]


async def test_there_is_no_proof_even_when_postgres_can_not_tell_why(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    await make_blocks(service, 1)
    service.database_down = True
    response = await client.get(f"/proofs/inclusion?request_uuid={uuid4()}")
    assert "Postgres is down" in refused(response, 40404)["detail"]


async def test_a_block_before_the_command_is_a_404_that_names_the_right_one(
    service: BlockService, client: httpx.AsyncClient
) -> None:
    _, _, (entry,) = await make_blocks(service, 2, 1, 1)
    query = f"request_uuid={entry.request_uuid}&height=1"
    problem = refused(await client.get(f"/proofs/inclusion?{query}"), 40405)
    assert "block 2, after block 1" in problem["detail"]


@pytest.mark.parametrize(
    "query",
    ["inclusion?request_uuid={}&height=2", "consistency?from=0&to=2", "consistency?from=2&to=3"],
)
async def test_a_block_that_is_not_there_is_a_404(
    service: BlockService, client: httpx.AsyncClient, query: str
) -> None:
    (entry,), _ = await make_blocks(service, 1, 1)
    response = await client.get("/proofs/" + query.format(entry.request_uuid))
    assert "no block at height 2" in refused(response, 40403)["detail"]


async def test_before_the_first_block_there_is_no_proof(client: httpx.AsyncClient) -> None:
    refused(await client.get(f"/proofs/inclusion?request_uuid={UUID(int=1)}"), 40403)
    refused(await client.get("/proofs/consistency?from=0&to=0"), 40403)


@pytest.mark.parametrize(
    "query",
    [
        "inclusion",
        "inclusion?request_uuid=x",
        f"inclusion?request_uuid={UUID(int=1)}&height=-1",
        f"inclusion?request_uuid={UUID(int=1)}&height={2**63}",
        "consistency",
        "consistency?from=0",
        "consistency?to=0",
        "consistency?from=-1&to=0",
        "consistency?from=1&to=0",
        f"consistency?from=0&to={2**63}",
    ],
)
async def test_bad_parameters_are_refused(
    service: BlockService, client: httpx.AsyncClient, query: str
) -> None:
    await make_blocks(service, 1, 1)
    refused(await client.get(f"/proofs/{query}"), 42202)


def test_the_documented_proofs_are_true() -> None:
    (inclusion,) = InclusionAnswer.model_json_schema()["examples"]
    assert includes(InclusionAnswer(**inclusion).model_dump(mode="json"))
    (consistency,) = ConsistencyAnswer.model_json_schema()["examples"]
    assert is_consistent(ConsistencyAnswer(**consistency).model_dump())
