"""Blocks from a running service, over HTTP (protocol, section 2).

The identity hash that is served is the one in the command log. An answer may say beside it whether
the service derived it (`identity_derived`). Where it does not, one that is not what `command_data`
gives counts as sent by the engine.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from ssl import SSLContext
from typing import Annotated, Any, Final, TypeVar
from uuid import UUID

import httpx
import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from app.chain.header import Delegation, Header, Roots, derived_identity
from app.chain.verify import Block, Command, Unverifiable
from app.model.entry import Count
from app.verify.proofs import Consistency, Inclusion, Prover
from app.verify.source import Extent, LooseEvent, Newest

_PAGE_BLOCKS: Final = 200
# Blocks whose commands are asked for at once; they are all that is held in memory.
_IN_FLIGHT: Final = 8
_TIMEOUT: Final = httpx.Timeout(60, connect=10)
_CONNECT_RETRIES: Final = 2
_MAX_ANSWER_BYTES: Final = 2 << 30
_SHOWN_BYTES: Final = 500

Answer = TypeVar("Answer")
Part = TypeVar("Part", bound=Struct)
Hash = Annotated[str, Meta(pattern=r"^0x[0-9A-Fa-f]{64}\Z")]
Hex = Annotated[str, Meta(pattern=r"^0x([0-9A-Fa-f]{2})*\Z")]


class _Block(Struct):
    batch_seq: Count
    prev_block_hash: Hex
    commands_hash: Hex
    batch_root: Hex
    command_count: Count
    first_seq: Count
    timestamp: Count
    signer: Hex
    signature: Hex
    block_hash: Hex
    state_root: Hex
    risk_root: Hex
    command_root: Hex
    obligation_root: Hex
    intent_root: Hex
    first_command_id: Count
    last_command_id: Count


class _Blocks(Struct):
    blocks: list[_Block]
    next: Count | None


class _Command(Struct):
    """`identity_derived`: whether the service derived the identity hash (null: it is not said)."""

    command_id: Count
    request_uuid: UUID
    command_identity_hash: Hash
    leaf_index: Count
    command_data: bytes
    events: list[LooseEvent] = []
    identity_derived: bool | None = None


class _Commands(Struct):
    commands: list[_Command]


class _Delegation(Struct):
    delegator: Hex
    delegate: Hex
    valid_from: Count
    valid_until: Count
    signature: Hex


class _Authorities(Struct):
    authorities: list[_Delegation]


class _Inclusion(Struct):
    request_uuid: UUID
    command_identity_hash: Hash
    leaf_index: Count
    tree_size: Count
    path: list[Hex]
    root: Hex
    height: Count


class _Consistency(Struct, rename={"first": "from", "second": "to"}):
    first: Count
    second: Count
    first_size: Count
    second_size: Count
    first_root: Hex
    second_root: Hex
    path: list[Hex]


class ServiceSource:
    """A running service. Blocks that it makes meanwhile are read too."""

    whole = True

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self._start = self._done = 0
        self._total: int | None = None

    @property
    def extent(self) -> Extent:
        """Blocks."""
        return Extent(self._done, self._total)

    @property
    def prover(self) -> Prover:
        """The service itself."""
        return self

    async def newest(self) -> Newest | None:
        """The block that the service calls its latest; None when there is none yet."""
        block = await self._find("blocks/latest", _Block)
        if block is None:
            # Nor is there one where something else than a journal listens.
            await self._get("blocks", _Blocks, limit=1)
            return None
        self._total = block.batch_seq + 1
        return Newest(block.batch_seq, _bytes(block.block_hash))

    async def authorities(self) -> list[Delegation]:
        """All delegations."""
        found = await self._get("authorities", _Authorities)
        return [_converted(asdict(each), Delegation) for each in found.authorities]

    async def blocks(self, start: int) -> AsyncGenerator[Block, None]:
        """The blocks from height `start` on, behind the one before them, with their content."""
        self._done = start = max(start - 1, 0)
        asked: deque[asyncio.Task[Block]] = deque()
        try:
            async for listed in self._listed(start):
                asked.append(asyncio.create_task(self._with_commands(listed), name="verify-block"))
                if len(asked) == _IN_FLIGHT:
                    yield await asked.popleft()
                    self._done += 1
            while asked:
                yield await asked.popleft()
                self._done += 1
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def inclusion(self, request_uuid: UUID, height: int) -> Inclusion:
        """The inclusion proof of a command, as of a block."""
        found = await self._get(
            "proofs/inclusion", _Inclusion, request_uuid=str(request_uuid), height=height
        )
        return _converted(asdict(found), Inclusion)

    async def consistency(self, first: int, second: int) -> Consistency:
        """The consistency proof between the command logs of two blocks."""
        found = await self._get("proofs/consistency", _Consistency, **{"from": first, "to": second})
        return _converted(asdict(found), Consistency)

    async def _listed(self, start: int) -> AsyncIterator[_Block]:
        after = {"after": start - 1} if start else {}
        while True:
            page = await self._get("blocks", _Blocks, limit=_PAGE_BLOCKS, order="asc", **after)
            for block in page.blocks:
                yield block
            if page.next is None or not page.blocks:
                return
            after = {"after": page.next}

    async def _with_commands(self, block: _Block) -> Block:
        path = f"blocks/{block.batch_seq}/commands"
        found = await self._get(path, _Commands, content="true")
        return Block(
            header=_converted(asdict(block), Header),
            roots=_converted(asdict(block), Roots),
            commands=[_command(command) for command in found.commands],
            stated_hash=_bytes(block.block_hash),
            first_command_id=block.first_command_id,
            last_command_id=block.last_command_id,
        )

    async def _get(self, path: str, kind: type[Answer], **query: str | int) -> Answer:
        """Ask; raises `Unverifiable` for any answer but a good one."""
        answer = await self._find(path, kind, **query)
        if answer is None:
            raise Unverifiable(f"{self._client.base_url.join(path)}: there is nothing (404)")
        return answer

    async def _find(self, path: str, kind: type[Answer], **query: str | int) -> Answer | None:
        """Ask; None for 404."""
        url = f"{self._client.base_url.join(path)}"
        try:
            async with self._client.stream("GET", path, params=query) as response:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        raise Unverifiable(f"{url}: the answer is longer than a block can be")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise Unverifiable(f"{url}: {reason}") from error
        if response.status_code == 404:
            return None
        if response.status_code != 200:
            said = " ".join(body[:_SHOWN_BYTES].decode(errors="replace").split())
            raise Unverifiable(f"{url}: {response.status_code} {said}")
        return _decoded(body, kind, url)


@asynccontextmanager
async def connected(
    url: str, verify: SSLContext | bool = True, token: str | None = None
) -> AsyncIterator[ServiceSource]:
    """A source of the service at `url`; nothing is asked of it yet."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    transport = httpx.AsyncHTTPTransport(verify=verify, retries=_CONNECT_RETRIES)
    async with httpx.AsyncClient(
        base_url=url, transport=transport, timeout=_TIMEOUT, headers=headers
    ) as client:
        yield ServiceSource(client)


def delegations(body: bytes, source: str) -> list[Delegation]:
    """The delegations in an answer of `GET /authorities`. Raises `Unverifiable`."""
    found = _decoded(body, _Authorities, source)
    return [_converted(asdict(each), Delegation) for each in found.authorities]


def _decoded(body: bytes | bytearray, kind: type[Answer], source: str) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unverifiable(f"{source}: this is no answer of a journal: {error}") from None


def _command(command: _Command) -> Command:
    uuid, data = command.request_uuid.bytes, command.command_data
    stated = _bytes(command.command_identity_hash)
    derived = command.identity_derived
    if derived is None:
        derived = stated == derived_identity(uuid, data)
    return Command(
        command_id=command.command_id,
        request_uuid=uuid,
        command_data=data,
        sent_identity=None if derived else stated,
        events=[*command.events],
        stated_identity=stated,
        leaf_index=command.leaf_index,
    )


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def _converted(answer: dict[str, Any], kind: type[Part]) -> Part:
    """Make `kind` of the fields of its names, hex text as bytes. Raises `Unverifiable`."""
    values = {}
    for name in kind.__struct_fields__:
        value = answer[name]
        if isinstance(value, str):
            value = _bytes(value)
        elif name == "path":
            value = [_bytes(each) for each in value]
        values[name] = value
    try:
        return msgspec.convert(values, kind, builtin_types=(bytes, UUID))
    except msgspec.ValidationError as error:
        raise Unverifiable(f"this is no answer of a journal: {error}") from None
