from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.chain.content import ALL_COMMANDS, block_indices
from app.chain.header import Header, Roots, block_hash
from app.chain.pipeline import (
    ChainState,
    PreparedBlock,
    first_difference,
    prepare_block,
)
from app.chain.sparse import Node, NodeKey
from app.errors import InvariantError
from app.model.entry import Entry, Event, Hash32
from tests.unit.chain import reference
from tests.unit.chain.logs import StoredLog
from tests.unit.chain.vectors import entry_of, from_hex, header_of, roots_of, vectors

SIGNER = from_hex(vectors()["delegation"]["delegate"])
hashes = st.binary(min_size=32, max_size=32).map(Hash32)
events = st.builds(
    Event,
    event_topic=st.sampled_from(["ticks", "fills"]),
    event_data=st.binary(max_size=20),
    event_type=st.just("Tick"),
)
commands = st.builds(
    Entry,
    request_uuid=st.uuids(),
    received_ts_ms=st.integers(0, 2**62),
    command_type=st.just("TickSnapshot"),
    command_data=st.binary(min_size=1, max_size=20),
    events=st.lists(events, max_size=3),
    command_identity_hash=st.none() | hashes,
)
batches = st.lists(st.lists(commands, min_size=1, max_size=9), max_size=6)


class Chain:
    """A chain with a store in memory, applied block by block."""

    def __init__(self) -> None:
        self.state = ChainState()
        self.tree_nodes: dict[NodeKey, Node] = {}
        self.logs = StoredLog(), StoredLog(), StoredLog()

    def prepare(
        self, batch: list[Entry], signer: bytes = SIGNER, timestamp: int | None = None
    ) -> PreparedBlock:
        at = batch[-1].received_ts_ms if timestamp is None else timestamp
        return prepare_block(self.state, self.tree_nodes.__getitem__, batch, at, signer)

    def apply(self, prepared: PreparedBlock) -> None:
        self.tree_nodes.update(prepared.state.written)
        appends = prepared.commands, prepared.obligations, prepared.intents
        for log, added in zip(self.logs, appends, strict=True):
            log.apply(added)
        self.state = prepared.after


def test_vector_blocks_come_out_as_they_are_on_the_page() -> None:
    chain = Chain()
    for example in vectors()["blocks"]:
        expected, batch = header_of(example["block"]), [entry_of(c) for c in example["commands"]]
        batch[-1].received_ts_ms = expected.timestamp
        prepared = chain.prepare(batch, expected.signer)
        assert prepared.header == replace(expected, signature=b"")
        assert prepared.roots == roots_of(example["block"])
        assert prepared.digest == from_hex(example["block"]["block_hash"])
        assert first_difference(prepared, expected, roots_of(example["block"])) is None
        chain.apply(prepared)
    assert chain.state.height == len(vectors()["blocks"])


@given(batches)
def test_any_sequence_of_batches_gives_the_blocks_of_the_page(appended: list[list[Entry]]) -> None:
    chain = Chain()
    identities: list[bytes] = []
    obligations: list[bytes] = []
    prev = bytes(32)
    for height, batch in enumerate(appended):
        first_seq = len(identities)
        new = [
            entry.command_identity_hash
            if any(entry.command_identity_hash or b"")
            else reference.identity(entry.request_uuid.bytes, entry.command_data)
            for entry in batch
        ]
        identities += [bytes(identity or b"") for identity in new]
        obligations += [
            reference.event_hash(e.event_topic, None, e.event_data, None, e.event_type)
            for entry in batch
            for e in entry.events
        ]
        prepared = chain.prepare(batch)
        batch_hash = reference.commands_hash(identities[first_seq:])
        command_root = reference.log_root(identities)
        roots = (
            reference.state_root(batch_hash, len(identities)),
            bytes(32),
            command_root,
            reference.log_root(obligations),
            command_root,
        )
        assert prepared.identities == identities[first_seq:]
        assert tuple(getattr(prepared.roots, name) for name in Roots.__struct_fields__) == roots
        assert prepared.header == Header(
            batch_seq=height,
            prev_block_hash=prev,
            commands_hash=batch_hash,
            batch_root=reference.batch_root(height, roots),
            command_count=len(batch),
            first_seq=first_seq,
            timestamp=batch[-1].received_ts_ms,
            signer=SIGNER,
        )
        prev = prepared.digest
        assert prev == block_hash(prepared.header)
        chain.apply(prepared)
    assert chain.logs[0].nodes == chain.logs[2].nodes


@given(batches, st.lists(commands, min_size=1, max_size=5))
def test_a_prepared_block_that_is_dropped_is_in_no_later_one(
    appended: list[list[Entry]], dropped: list[Entry]
) -> None:
    disturbed, calm = Chain(), Chain()
    for batch in [*appended, dropped]:
        state, nodes = disturbed.state, dict(disturbed.tree_nodes)
        disturbed.prepare(dropped)
        assert (disturbed.state, disturbed.tree_nodes) == (state, nodes)
        disturbed.apply(disturbed.prepare(batch))
        calm.apply(calm.prepare(batch))
    assert disturbed.state == calm.state


def test_an_intent_log_that_went_its_own_way_is_appended_to_by_itself() -> None:
    chain = Chain()
    own = StoredLog([b"an intent of another materializer"])
    chain.state = chain.state._replace(intents=own.state)
    prepared = chain.prepare([entry()])
    leaves = [b"an intent of another materializer", *prepared.identities]
    assert prepared.roots.intent_root == reference.log_root(leaves)
    assert prepared.roots.command_root == reference.log_root(prepared.identities)


def test_a_batch_without_block_commands_makes_no_block() -> None:
    with pytest.raises(InvariantError, match="without commands"):
        Chain().prepare([], timestamp=0)


def entry(command_type: str | None = "TickSnapshot") -> Entry:
    return Entry(
        request_uuid=UUID(int=1),
        received_ts_ms=5,
        command_type=command_type,
        command_data=b"\x01",
        events=[Event(event_topic="t", event_data=b"", event_type="T")],
    )


@pytest.mark.parametrize(
    ("configured", "selected"),
    [
        ({"TickSnapshot"}, [0, 3]),
        ({"TickSnapshot", "ApproveAgent"}, [0, 2, 3]),
        ({ALL_COMMANDS}, [0, 2, 3]),
        ({ALL_COMMANDS, "TickSnapshot"}, [0, 2, 3]),
        ({"Other"}, []),
        (set(), []),
    ],
)
def test_block_commands_are_selected_by_type_and_never_without_one(
    configured: set[str], selected: list[int]
) -> None:
    types = ["TickSnapshot", None, "ApproveAgent", "TickSnapshot"]
    assert block_indices(types, configured) == selected


@pytest.mark.parametrize("field", [f for f in Header.__struct_fields__ if f != "signature"])
def test_the_first_difference_in_a_header_is_named(field: str) -> None:
    prepared = Chain().prepare([entry()])
    value = getattr(prepared.header, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    recorded = replace(prepared.header, **{field: other}, signature=b"any")
    difference = first_difference(prepared, recorded, prepared.roots)
    assert difference is not None
    assert (difference.height, difference.field) == (0, field)
    shown = [str(v) if isinstance(v, int) else f"0x{v.hex()}" for v in (value, other)]
    assert str(difference) == f"block 0: {field}: expected {shown[0]}, found {shown[1]}"


@pytest.mark.parametrize("field", Roots.__struct_fields__)
def test_the_first_difference_in_the_roots_is_named(field: str) -> None:
    prepared = Chain().prepare([entry()])
    recorded = replace(prepared.roots, **{field: b"\x01" * 32})
    difference = first_difference(prepared, prepared.header, recorded)
    assert difference is not None
    assert difference.field == field
    assert difference.found == "0x" + "01" * 32


def test_a_signature_makes_no_difference() -> None:
    prepared = Chain().prepare([entry()])
    signed = replace(prepared.header, signature=bytes(65))
    assert first_difference(prepared, signed, prepared.roots) is None
