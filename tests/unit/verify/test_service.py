import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from msgspec.structs import replace

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from coincurve import PrivateKey

from app.chain.authority import address_of, delegate, sign_header
from app.chain.header import Delegation, Header
from app.chain.position import Position, beginning
from app.chain.verify import ChainCheck, Fault, Tally, Terms, Unverifiable
from app.model.entry import Entry, Hash32
from app.verify.audit import audit
from app.verify.proofs import Marks, check_proofs
from app.verify.service import ServiceSource, delegations
from tests.support.block_service import BlockService
from tests.support.journal_entries import make_entry, make_event
from tests.support.signed_chain import COLD_ADDRESS, COLD_KEY

# The loop of the service that tests share.
pytestmark = pytest.mark.asyncio(loop_scope="module")

TERMS = Terms(frozenset({COLD_ADDRESS}))
BLOCKS = 6
Change = Callable[[str, Any], None]


class Key:
    """A hot key with a delegation of the cold one."""

    def __init__(self, number: int) -> None:
        self._key = PrivateKey(number.to_bytes(32, "big"))
        self.address = address_of(self._key.public_key)
        self.delegation: Delegation = delegate(COLD_KEY, self.address, 1_000, 9_000)

    def sign_header(self, header: Header) -> Header:
        return sign_header(header, self._key)


class Tampering(httpx.AsyncBaseTransport):
    """The service's answers, as `change` leaves them; it gets the path and the decoded body."""

    def __init__(self, service: BlockService, change: Change | None = None) -> None:
        self._inner = httpx.ASGITransport(app=service.app)
        self._change = change
        self.paths: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        self.paths.append(request.url.path)
        if self._change is None:
            return response
        body = json.loads(await response.aread())
        self._change(request.url.path, body)
        return httpx.Response(response.status_code, json=body)


def tick(**fields: Any) -> Entry:
    return make_entry(
        **{"command_type": "TickSnapshot", "received_ts_ms": 2_000, "events": [make_event()]}
        | fields
    )


@asynccontextmanager
async def serving(data_dir: Path) -> AsyncIterator[BlockService]:
    """Blocks of a command or more, of two hot keys; one command's hash is the engine's."""
    running = BlockService(data_dir)
    for height in range(BLOCKS):
        if height % 3 == 0:
            running.signer.key = Key(height + 1)
        engines = tick(command_identity_hash=Hash32(b"\x07" * 32))
        await running.commit(*(tick() for _ in range(height % 3 + 1)), make_entry())
        if height == 2:
            await running.commit(make_entry())
            await running.commit(engines)
    try:
        yield running
    finally:
        await running.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[BlockService]:
    """For all tests: what they change is what it answers."""
    async with serving(tmp_path_factory.mktemp("service") / "data") as running:
        yield running


async def verify(
    service: BlockService,
    change: Change | None = None,
    start: Position | None = None,
    terms: Terms = TERMS,
    marks: int = 4,
) -> tuple[Tally, int]:
    """What was checked, and how many proofs."""
    check, drawn = ChainCheck(terms, start or beginning()), Marks(marks, Random(1))
    transport = Tampering(service, change)
    async with httpx.AsyncClient(transport=transport, base_url="http://journal") as client:
        source = ServiceSource(client)
        await audit(source, check, drawn.add)
        return check.tally, await check_proofs(source, drawn)


async def fault_of(service: BlockService, change: Change, **options: Any) -> Fault:
    with pytest.raises(Fault) as caught:
        await verify(service, change, **options)
    return caught.value


async def test_a_service_verifies_with_its_proofs(service: BlockService) -> None:
    tally, proofs = await verify(service)
    assert (tally.blocks, tally.commands, tally.events) == (BLOCKS + 1, 13, 13)
    assert (tally.delegations, tally.engine_hashed) == (2, 1)
    assert proofs >= 4 * 2


async def test_more_blocks_than_a_page_are_read_and_none_twice(tmp_path: Path) -> None:
    running = BlockService(tmp_path / "data")
    running.signer.key = Key(1)
    try:
        await running.commit_all([(tick(),) for _ in range(401)])
        assert (await verify(running))[0].blocks == 401
    finally:
        await running.close()


def block_field(height: int, field: str, change: Callable[[Any], Any]) -> Change:
    """Change a field of the block at `height`, wherever it is served."""

    def alter(path: str, body: Any) -> None:
        if path == "/blocks/latest":
            blocks = [body]
        elif path == "/blocks":
            blocks = body["blocks"]
        else:
            return
        for block in blocks:
            if block["batch_seq"] == height:
                block[field] = change(block[field])

    return alter


def flip(value: Any) -> Any:
    """Change one bit of hex text, base64, or a number."""
    if isinstance(value, int):
        return value ^ 1
    if value.startswith("0x"):
        changed = bytearray(bytes.fromhex(value[2:]))
        changed[len(changed) // 2] ^= 0x10
        return "0x" + changed.hex()
    changed = bytearray(base64.b64decode(value))
    changed[0] ^= 0x10
    return base64.b64encode(changed).decode()


FIELDS = [
    "batch_seq", "prev_block_hash", "commands_hash", "batch_root", "command_count", "first_seq",
    "timestamp", "signer", "signature", "block_hash", "state_root", "risk_root", "command_root",
    "obligation_root", "intent_root", "first_command_id", "last_command_id",
]  # fmt: skip


@pytest.mark.parametrize("height", [0, 3, BLOCKS])
@pytest.mark.parametrize("field", FIELDS)
async def test_a_flipped_bit_in_a_block_is_found(
    service: BlockService, height: int, field: str
) -> None:
    change = block_field(height, field, flip)
    if field == "batch_seq":
        # Its commands are asked for under another height, which may not be there.
        with pytest.raises((Fault, Unverifiable)):
            await verify(service, change)
        return
    fault = await fault_of(service, change)
    assert fault.height == height


@pytest.mark.parametrize(
    "field", ["delegator", "delegate", "valid_from", "valid_until", "signature"]
)
async def test_a_flipped_bit_in_a_delegation_is_found(service: BlockService, field: str) -> None:
    def change(path: str, body: Any) -> None:
        if path == "/authorities":
            body["authorities"][-1][field] = flip(body["authorities"][-1][field])

    fault = await fault_of(service, change)
    assert "delegation" in fault.field
    # The oldest delegation: what it was needed for is the first block.
    assert fault.height == 0


def commands_of(height: int, change: Callable[[list[Any]], None]) -> Change:
    def alter(path: str, body: Any) -> None:
        if path == f"/blocks/{height}/commands":
            change(body["commands"])

    return alter


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[1].update(command_data=flip(found[1]["command_data"])),
        lambda found: found[1].update(request_uuid=str(UUID(int=1))),
        lambda found: found[1].update(command_id=found[1]["command_id"] + 1),
        lambda found: found[1].update(leaf_index=found[1]["leaf_index"] + 1),
        lambda found: found[1].update(command_identity_hash="0x" + "07" * 32),
        lambda found: found[1].update(
            command_identity_hash="0x" + "07" * 32, identity_derived=False
        ),
        lambda found: found[1]["events"].clear(),
        lambda found: found[1]["events"].append(found[1]["events"][0]),
        lambda found: found[1]["events"][0].update(event_topic="other"),
        lambda found: found[1]["events"][0].update(event_data="AQ=="),
        lambda found: found[1]["events"][0].update(event_key="k"),
        lambda found: found[1]["events"][0].update(l2_sequence=0),
        lambda found: found[1]["events"][0].update(event_type="Other"),
        lambda found: found.reverse(),
        lambda found: found.pop(),
        lambda found: found.append(found[0]),
        lambda found: found.clear(),
    ],
)
async def test_a_change_in_a_command_is_found(
    service: BlockService, change: Callable[[list[Any]], None]
) -> None:
    assert (await fault_of(service, commands_of(2, change))).height == 2


async def test_a_command_called_engine_hashed_is_taken_for_one_unless_that_is_refused(
    service: BlockService,
) -> None:
    """The hash stays, the data is another: no block can tell. It is counted, and can be refused."""

    def change(found: list[Any]) -> None:
        found[1].update(command_data="AQ==", identity_derived=False)

    tally, _ = await verify(service, commands_of(2, change))
    assert tally.engine_hashed == 2
    refusing = TERMS._replace(service_hashed=True)
    assert (await fault_of(service, commands_of(2, change), terms=refusing)).height == 2


async def test_blocks_left_out_are_found(service: BlockService) -> None:
    for height in range(BLOCKS + 1):

        def change(path: str, body: Any, missing: int = height) -> None:
            if path == "/blocks":
                body["blocks"] = [b for b in body["blocks"] if b["batch_seq"] != missing]

        assert (await fault_of(service, change)).height == height


async def test_another_newest_block_than_the_listed_one_is_found(service: BlockService) -> None:
    def change(path: str, body: Any) -> None:
        if path == "/blocks/latest":
            body["block_hash"] = flip(body["block_hash"])

    fault = await fault_of(service, change)
    assert (fault.height, fault.field) == (BLOCKS, "block_hash of the newest block")


@pytest.mark.parametrize("field", ["leaf_index", "tree_size", "root", "height", "path"])
async def test_a_wrong_inclusion_proof_is_found(service: BlockService, field: str) -> None:
    def change(path: str, body: Any) -> None:
        if path == "/proofs/inclusion":
            value = body[field]
            body[field] = [*map(flip, value), "0x" + "00" * 32] if field == "path" else flip(value)

    assert "inclusion proof" in (await fault_of(service, change)).field


@pytest.mark.parametrize(
    "field", ["from", "to", "first_size", "second_size", "first_root", "second_root", "path"]
)
async def test_a_wrong_consistency_proof_is_found(service: BlockService, field: str) -> None:
    def change(path: str, body: Any) -> None:
        if path == "/proofs/consistency":
            value = body[field]
            body[field] = [*map(flip, value), "0x" + "00" * 32] if field == "path" else flip(value)

    assert "consistency proof" in (await fault_of(service, change)).field


async def test_a_request_uuid_that_came_again_is_proven_by_its_first_leaf(tmp_path: Path) -> None:
    running = BlockService(tmp_path / "data", dedup_window=1)
    running.signer.key = Key(1)
    again = uuid4()
    try:
        await running.commit(tick(request_uuid=again))
        for _ in range(3):
            await running.commit(*(tick() for _ in range(40)))
        outcome = await running.commit(tick(request_uuid=again, command_data=b"\x01other"))
        assert outcome.duplicates == []
        assert (await verify(running, marks=9))[1] == 4 + 4 + 5 + 4
    finally:
        await running.close()


async def test_a_delegation_that_is_newer_than_the_first_answer_is_asked_for(
    service: BlockService,
) -> None:
    asked = 0

    def change(path: str, body: Any) -> None:
        nonlocal asked
        if path == "/authorities":
            asked += 1
            if asked == 1:
                del body["authorities"][0]

    assert (await verify(service, change))[0].delegations == 2
    assert asked == 2


async def test_a_signer_without_a_delegation_is_found(service: BlockService) -> None:
    def change(path: str, body: Any) -> None:
        if path == "/authorities":
            body["authorities"] = body["authorities"][1:]

    fault = await fault_of(service, change)
    assert (fault.height, fault.field) == (4, "signer")


async def test_going_on_from_an_earlier_run_needs_the_block_it_ended_with(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path / "data") as service:
        check = ChainCheck(TERMS, beginning())
        async with httpx.AsyncClient(
            transport=Tampering(service), base_url="http://journal"
        ) as client:
            await audit(ServiceSource(client), check, lambda block: None)
        position = check.position
        tally, _ = await verify(service, start=replace(position, delegations=[]))
        assert tally.blocks == 0
        await service.commit(tick())
        tally, proofs = await verify(service, start=replace(position, delegations=[]))
        assert (tally.blocks, tally.events, proofs > 0) == (1, 1, True)
        # Made anew, or cut off.
        for wrong, height in (
            (Position(height=3, block_hash=b"\x01" * 32), 2),
            (Position(height=100, block_hash=b"\x01" * 32), 99),
        ):
            with pytest.raises(Fault) as caught:
                await verify(service, start=wrong)
            assert (caught.value.height, caught.value.expected) == (height, "0x" + "01" * 32)


async def test_a_service_without_blocks_can_not_be_checked(tmp_path: Path) -> None:
    running = BlockService(tmp_path / "data")
    try:
        with pytest.raises(Unverifiable, match="no blocks"):
            await verify(running)
    finally:
        await running.close()


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(200, json={"hello": "world"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(404),
        httpx.Response(503, json={"detail": "starting"}),
        httpx.Response(302, headers={"location": "http://elsewhere"}),
        httpx.ConnectError("refused"),
    ],
)
async def test_what_is_no_journal_can_not_be_checked(
    response: httpx.Response | httpx.ConnectError,
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if isinstance(response, httpx.ConnectError):
            raise response
        return httpx.Response(
            response.status_code, headers=response.headers, content=response.content
        )

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        with pytest.raises(Unverifiable):
            await audit(ServiceSource(client), ChainCheck(TERMS, beginning()), lambda block: None)


async def test_an_answer_with_a_hash_of_another_length_can_not_be_checked(
    service: BlockService,
) -> None:
    with pytest.raises(Unverifiable):
        await verify(service, block_field(1, "batch_root", lambda found: found[:-2]))


async def test_delegations_may_come_from_a_file() -> None:
    key = Key(1).delegation
    shown = {
        name: f"0x{value.hex()}" if isinstance(value, bytes) else value
        for name, value in ((n, getattr(key, n)) for n in key.__struct_fields__)
    }
    assert delegations(json.dumps({"authorities": [shown]}).encode(), "file") == [key]
    with pytest.raises(Unverifiable, match="file"):
        delegations(b"[]", "file")
