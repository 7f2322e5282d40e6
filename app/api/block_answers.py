"""Blocks, their commands and delegations as answers show them, and their documentation."""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from app.chain.hashing import ZERO32, keccak
from app.chain.header import Delegation, Header, Roots
from app.chain.store import BlockCommand, StoredBlock
from app.model.entry import Entry

Hash = Annotated[str, Field(pattern="^0x[0-9a-f]{64}$", description="32 bytes")]
Signature = Annotated[
    str, Field(pattern="^0x([0-9a-f]{130})?$", description="`r ‖ s ‖ v`; `0x` when unsigned")
]
AddressText = Annotated[str, Field(pattern="^0x[0-9a-fA-F]{40}$", description="EIP-55")]
Base64 = Annotated[str, Field(description="base64; `bin` in MessagePack")]

DELEGATION_EXAMPLE: Final[dict[str, Any]] = {
    "delegator": "0xD0A6588C678d94ce87619aB6068E46a4BAd36C10",
    "delegate": "0xC494F77CCd6a1Ef40d9e74d92188680de4B51c4e",
    "valid_from": 1700000000000,
    "valid_until": 1700086400000,
    "signature": "0x7642d8e0e7a1b0e1ec711cd001589d05b48781190074a6c7e05ecbb5ccda6ff7"
    "422f66bdfa01558531436332bfe20436d602845047210e6e7c6c3d9f7e5c696700",
}
BLOCK_EXAMPLE: Final[dict[str, Any]] = {
    "batch_seq": 0,
    "prev_block_hash": "0x" + "00" * 32,
    "commands_hash": "0x9c713fb8d6bcfeb86de079c182f16d148dba1578fc37393ed8f6905391d6db56",
    "batch_root": "0x6c392d7f693507e5f6330a09d9c416ef2b4d85efa1596d88ffd4e98ad64c24f9",
    "command_count": 1,
    "first_seq": 0,
    "timestamp": 1700000000000,
    "signer": "0xC494F77CCd6a1Ef40d9e74d92188680de4B51c4e",
    "signature": "0x7b357136cdfec8888657a76a9a3494e082873d74a4d5a49514925e25266174f5"
    "2d36f1554351179853e505cecf507c3f63811532d4cb05adcdf16081c580039001",
    "block_hash": "0x9f29bde37a84746acd7bdf5532a5ed9f4609de6b20c20edc67359a1c0ee6d071",
    "state_root": "0x9cec9b0a1778f627bab0b2fea1b2e597819287dd06a01c36075b6343e2a84b22",
    "risk_root": "0x" + "00" * 32,
    "command_root": "0x10afdc451dd5822902de47e165d12139d70af0a14016bce18fb914a5a3e83dcf",
    "obligation_root": "0xcdadc2eb5a30c1d5a4f1a2a59f399e6c32f706a08d35e10ae70e1835deb1eb3e",
    "intent_root": "0x10afdc451dd5822902de47e165d12139d70af0a14016bce18fb914a5a3e83dcf",
    "first_command_id": 1,
    "last_command_id": 1,
}
COMMAND_EXAMPLE: Final[dict[str, Any]] = {
    "command_id": 1,
    "request_uuid": "822ce47c-a8c7-4107-e66c-b0e4b2b3f4d5",
    "command_type": "TickSnapshot",
    "command_identity_hash": "0x29f66abe3c3e766642c60fd1dc448e784a7573fe0bc35b2db075dca5e1e3ace7",
    "leaf_index": 0,
    "command_data": "AYbSyW52DoGbhckkw1lxZMSmBYoAWBoisnI=",
    "events": [
        {
            "event_topic": "ticks",
            "event_key": None,
            "event_data": "lw==",
            "l2_sequence": 0,
            "event_type": "TickSnapshot",
        }
    ],
    "identity_derived": True,
}


class BlockAnswer(BaseModel):
    """A signed header, the roots it stands for, and the journal's numbers of its commands."""

    model_config = ConfigDict(json_schema_extra={"examples": [BLOCK_EXAMPLE]})

    batch_seq: Annotated[int, Field(description="the height, from 0")]
    prev_block_hash: Hash
    commands_hash: Hash
    batch_root: Hash
    command_count: int
    first_seq: Annotated[int, Field(description="block commands in all earlier blocks")]
    timestamp: Annotated[int, Field(description="ms; of the batch's last entry")]
    signer: AddressText
    signature: Signature
    block_hash: Hash
    state_root: Hash
    risk_root: Hash
    command_root: Hash
    obligation_root: Hash
    intent_root: Hash
    first_command_id: int
    last_command_id: int


class BlocksAnswer(BaseModel):
    """A page of blocks. `next` is the `after` of the next page; null where there is none yet."""

    blocks: list[BlockAnswer]
    next: Annotated[int | None, Field(examples=[0])]


class EventAnswer(BaseModel):
    """An event as it was journaled."""

    event_topic: str
    event_key: str | None
    event_data: Base64
    l2_sequence: int | None
    event_type: str


class CommandAnswer(BaseModel):
    """A block command. The last three are there with `content=true` alone."""

    command_id: int
    request_uuid: UUID
    command_type: str
    command_identity_hash: Hash
    leaf_index: Annotated[int, Field(description="its place in the command log")]
    command_data: Base64 | None = None
    events: list[EventAnswer] | None = None
    identity_derived: Annotated[
        bool | None, Field(description="whether the service derived the identity hash")
    ] = None


class CommandsAnswer(BaseModel):
    """The commands that a block covers, in their order."""

    height: int
    block_hash: Hash
    commands: Annotated[list[CommandAnswer], Field(examples=[[COMMAND_EXAMPLE]])]


class DelegationAnswer(BaseModel):
    """The cold key's word that `delegate` signs for it, in a window of ms, ends included."""

    model_config = ConfigDict(json_schema_extra={"examples": [DELEGATION_EXAMPLE]})

    delegator: AddressText
    delegate: AddressText
    valid_from: int
    valid_until: int
    signature: Signature


class AuthoritiesAnswer(BaseModel):
    """All delegations, the newest first."""

    authorities: list[DelegationAnswer]


def hex_text(value: bytes) -> str:
    """Bytes as `0x` hex."""
    return "0x" + value.hex()


@lru_cache(maxsize=256)
def checksum_address(address: bytes) -> str:
    """An address as EIP-55 has it: a letter is large where the hash of the text has a bit set."""
    text = address.hex()
    digest = keccak(text.encode()).hex()
    return "0x" + "".join(
        letter.upper() if int(digit, 16) >= 8 else letter
        for letter, digit in zip(text, digest, strict=False)
    )


def block_answer(block: StoredBlock) -> dict[str, Any]:
    """A block as answers show it."""
    shown = _shown(block.header, Header.__struct_fields__)
    shown["block_hash"] = hex_text(block.block_hash)
    shown.update(_shown(block.roots, Roots.__struct_fields__))
    shown["first_command_id"] = block.first_command_id
    shown["last_command_id"] = block.last_command_id
    return shown


def delegation_answer(delegation: Delegation) -> dict[str, Any]:
    """A delegation as answers show it."""
    return _shown(delegation, Delegation.__struct_fields__)


def commands_answer(block: StoredBlock) -> dict[str, Any]:
    """What answers show around a block's commands."""
    return {
        "height": block.header.batch_seq,
        "block_hash": hex_text(block.block_hash),
        "commands": [],
    }


def each_command_answer(
    commands: Iterable[BlockCommand], contents: Mapping[int, Entry] | None = None
) -> Iterator[dict[str, Any]]:
    """A block's commands as answers show them; with `contents`, those of all of them."""
    for command in commands:
        answer = {
            "command_id": command.command_id,
            "request_uuid": _uuid_text(command.request_uuid),
            "command_type": command.command_type,
            "command_identity_hash": hex_text(command.identity),
            "leaf_index": command.leaf_index,
        }
        if contents is not None:
            entry = contents[command.command_id]
            answer["command_data"] = entry.command_data
            # Each field spelled out: those that equal their default would be left out else.
            answer["events"] = [msgspec.structs.asdict(event) for event in entry.events]
            answer["identity_derived"] = entry.command_identity_hash in (None, ZERO32)
        yield answer


def _uuid_text(value: bytes) -> str:
    """As `str(UUID(bytes=value))`, which takes most of the time of a large answer."""
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_ADDRESSES: Final = frozenset({"signer", "delegator", "delegate"})


def _shown(struct: Header | Roots | Delegation, fields: tuple[str, ...]) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name in fields:
        value = getattr(struct, name)
        if isinstance(value, bytes):
            value = checksum_address(value) if name in _ADDRESSES else hex_text(value)
        shown[name] = value
    return shown
