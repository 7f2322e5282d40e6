"""The compiled functions give what the others give, whatever they are asked for."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chain import bulk, merkle
from app.chain.hashing import HASH_BYTES, hash_in_domain
from app.chain.header import command_identities, command_identity, event_hash, event_hashes
from app.model.entry import Entry, Event, Hash32
from app.service.compiled import LANES, load
from tests.unit.chain import reference

# Around the ends of Keccak's blocks of 136 bytes.
SIZES = [0, 1, 7, 8, 94, 95, 96, 97, 135, 136, 137, 230, 231, 232, 233, 272, 500, 3000]
payloads = st.one_of(st.binary(max_size=600), st.sampled_from(SIZES).map(bytes))
integers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
texts = st.one_of(st.sampled_from(["event_data", "event_data\x90", "ªevent_data"]), st.text())
leaves = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)


@pytest.fixture(scope="module", autouse=True)
def lanes() -> Iterator[None]:
    pytest.importorskip("numba", reason="numba has no wheel here")
    bulk.use(load(LANES))
    yield
    bulk.use(None)


@given(st.binary(max_size=40), st.lists(payloads, min_size=1, max_size=40))
def test_payloads_are_hashed_as_one_by_one(domain: bytes, messages: list[bytes]) -> None:
    hashes = bulk.lanes_for(bulk.LEAST).hash_payloads(domain, messages)
    assert bulk.split(hashes) == [hash_in_domain(domain, message) for message in messages]


@given(
    st.lists(
        st.builds(
            Event,
            event_topic=texts,
            event_key=st.none() | texts,
            event_data=payloads,
            l2_sequence=integers,
            event_type=texts,
        ),
        min_size=bulk.LEAST,
        max_size=30,
    )
)
def test_events_are_hashed_as_one_by_one(events: list[Event]) -> None:
    assert event_hashes(events) == [event_hash(event) for event in events]


@pytest.mark.parametrize("size", [15, 16, 127, 128, 255, 256, 65_535, 65_536])
def test_events_of_any_length_are_hashed_as_one_by_one(size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    events = [Event(event_topic="t", event_data=data, event_type="E")] * bulk.LEAST
    assert event_hashes(events) == [reference.event_hash("t", None, data, None, "E")] * bulk.LEAST


@given(
    st.lists(
        st.tuples(st.none() | leaves | st.just(bytes(HASH_BYTES)), st.binary(max_size=300)),
        min_size=bulk.LEAST,
        max_size=30,
    )
)
def test_identities_are_those_that_were_sent_or_else_derived(
    commands: list[tuple[bytes | None, bytes]],
) -> None:
    entries = [
        Entry(
            request_uuid=UUID(int=number),
            received_ts_ms=0,
            command_data=data,
            command_identity_hash=None if sent is None else Hash32(sent),
        )
        for number, (sent, data) in enumerate(commands)
    ]
    assert command_identities(entries) == [command_identity(entry) for entry in entries]


@given(st.lists(st.lists(leaves, max_size=40), max_size=12), st.integers(0, 300))
def test_logs_grow_as_one_by_one(batches: list[list[bytes]], size: int) -> None:
    state = merkle.append(merkle.LogState(), [bytes(HASH_BYTES)] * size).state
    for batch in batches:
        grown = merkle.append(state, batch)
        bulk.use(None)
        expected = merkle.append(state, batch)
        bulk.use(load(LANES))
        assert grown == expected
        state = grown.state


def test_a_log_of_thousands_has_the_root_of_the_reference() -> None:
    data = [number.to_bytes(HASH_BYTES, "big") for number in range(5000)]
    state = merkle.LogState()
    for start in range(0, len(data), 1000):
        state = merkle.append(state, data[start : start + 1000]).state
    assert state.root == reference.log_root(data)


def test_leaves_of_another_size_are_hashed_too() -> None:
    data = [b"own", *[bytes(HASH_BYTES)] * bulk.LEAST]
    assert merkle.append(merkle.LogState(), data).state.root == reference.log_root(data)
