from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.chain.header import (
    GLOBAL_LEAF_KEY,
    Header,
    Roots,
    batch_root,
    block_hash,
    command_identity,
    commands_hash,
    event_hash,
    global_leaf_value,
)
from app.model.entry import Entry, Event, Hash32
from tests.unit.chain import reference
from tests.unit.chain.vectors import entry_of, event_of, from_hex, header_of, roots_of, vectors

BLOCKS = vectors()["blocks"]
COMMANDS = [command for block in BLOCKS for command in block["commands"]]
EVENTS = [event for command in COMMANDS for event in command["events"]]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=300)
integers = st.integers(-(2**63), 2**63 - 1)


def test_vector_commands_have_their_derived_identity() -> None:
    assert COMMANDS
    for command in COMMANDS:
        assert command_identity(entry_of(command)) == from_hex(command["command_identity_hash"])


def test_vector_events_have_their_hashes() -> None:
    assert EVENTS
    for event in EVENTS:
        assert event_hash(event_of(event)) == from_hex(event["event_hash"])


@pytest.mark.parametrize("example", BLOCKS, ids=lambda block: str(block["block"]["batch_seq"]))
def test_vector_headers_have_their_hashes_and_batch_roots(example: dict[str, object]) -> None:
    block = example["block"]
    assert isinstance(block, dict)
    header, roots = header_of(block), roots_of(block)
    assert block_hash(header) == from_hex(block["block_hash"])
    assert batch_root(header.batch_seq, roots) == header.batch_root


# Lengths and numbers on both sides of every change of form in MessagePack.
@example("t", None, bytes(15), -1, "T")
@example("t", "", bytes([127, 128, 255]) * 6, -32, "T")
@example("t" * 31, "k" * 32, b"", -33, "T")
@example("t", "k" * 255, b"\x80" * 65535, 2**32, "T")
@example("t", "k" * 256, b"\x80" * 65536, -(2**31) - 1, "T")
@given(texts, st.none() | texts, st.binary(max_size=600), st.none() | integers, texts)
def test_an_event_is_hashed_as_the_original_engine_encodes_it(
    topic: str, key: str | None, data: bytes, l2_sequence: int | None, event_type: str
) -> None:
    event = Event(
        event_topic=topic,
        event_key=key,
        event_data=data,
        l2_sequence=l2_sequence,
        event_type=event_type,
    )
    expected = reference.event_hash(topic, key, data, l2_sequence, event_type)
    assert event_hash(event) == expected


def entry(identity: bytes | None) -> Entry:
    return Entry(
        request_uuid=UUID(int=7),
        received_ts_ms=1,
        command_data=b"\x01data",
        command_identity_hash=None if identity is None else Hash32(identity),
    )


@pytest.mark.parametrize("sent", [None, bytes(32)])
def test_an_absent_or_zero_identity_is_derived(sent: bytes | None) -> None:
    derived = reference.identity(UUID(int=7).bytes, b"\x01data")
    assert command_identity(entry(sent)) == derived


def test_an_identity_that_the_engine_sent_is_kept() -> None:
    sent = bytes(31) + b"\x01"
    identity = command_identity(entry(sent))
    assert identity == sent
    assert type(identity) is bytes


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
def test_commands_hash_covers_identities_in_order(identities: list[bytes]) -> None:
    assert commands_hash(identities) == reference.commands_hash(identities)


def test_the_global_leaf_is_that_of_the_page() -> None:
    digest = reference.keccak(b"commands")
    key, value = GLOBAL_LEAF_KEY, global_leaf_value(digest, 41)
    assert reference.tree_root({key: value}) == reference.state_root(digest, 41)


@pytest.mark.parametrize("field", [f for f in Header.__struct_fields__ if f != "signature"])
def test_every_field_but_the_signature_is_in_the_block_hash(field: str) -> None:
    header = header_of(BLOCKS[1]["block"])
    value = getattr(header, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    assert block_hash(msgspec.structs.replace(header, **{field: other})) != block_hash(header)


def test_the_signature_is_not_in_the_block_hash() -> None:
    header = header_of(BLOCKS[1]["block"])
    unsigned = msgspec.structs.replace(header, signature=b"")
    assert block_hash(unsigned) == block_hash(header)


@pytest.mark.parametrize("field", Roots.__struct_fields__)
def test_every_root_and_the_version_are_in_the_batch_root(field: str) -> None:
    roots = roots_of(BLOCKS[1]["block"])
    other = msgspec.structs.replace(roots, **{field: b"\x01" * 32})
    assert batch_root(1, other) != batch_root(1, roots) != batch_root(2, roots)


def test_header_and_roots_survive_messagepack_and_refuse_wrong_lengths() -> None:
    block = BLOCKS[1]["block"]
    for value in (header_of(block), roots_of(block)):
        data = msgspec.msgpack.encode(value)
        assert msgspec.msgpack.decode(data, type=type(value)) == value
        fields = msgspec.to_builtins(value, builtin_types=(bytes,))
        for name, content in fields.items():
            if isinstance(content, bytes):
                damaged = msgspec.msgpack.encode({**fields, name: content + b"\x00"})
                with pytest.raises(msgspec.ValidationError, match=name):
                    msgspec.msgpack.decode(damaged, type=type(value))
