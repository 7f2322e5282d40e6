"""Record framing, against crcmod and the schemaless msgpack."""

import struct
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from app.chain.header import Delegation, Header, Roots
from app.errors import InvariantError
from app.model.codec import canonical_bytes, pack
from app.model.packing import array_header, pack_array
from app.wal import record
from app.wal.record import (
    FRAME_BYTES,
    Batch,
    Genesis,
    KeyedBatch,
    Outline,
    PackedBatch,
    RawBatch,
    crc_matches,
    decode_command,
    decode_keyed,
    decode_raw,
    decode_record,
    encode_batch,
    encode_record,
    read_outline,
    unpack_frame,
)
from tests.support.foreign_wal import plain
from tests.support.journal_entries import make_entry, make_full_entry
from tests.support.strategies import entries
from tests.support.wal_files import crc_32c, frame, make_genesis

BLOCK_FIELDS = ["header", "roots", "block_indices", "authority"]


def test_a_genesis_is_framed_as_the_protocol_says() -> None:
    genesis = make_genesis(640, 7)
    data = bytes(encode_record(genesis))
    length, crc = struct.unpack("<II", data[:8])
    assert length == len(data) - 8
    assert crc == crc_32c(data[8:])
    content = msgpack.unpackb(data[8:])
    assert list(content)[:2] == ["kind", "offset"]
    assert content == {
        "kind": "genesis",
        "offset": 640,
        "format": 1,
        "wal_id": genesis.wal_id,
        "environment": genesis.environment,
        "created_ms": genesis.created_ms,
        "first_command_id": 7,
    }


@given(commands=st.lists(entries(), max_size=3), offset=st.integers(0, 2**63 - 1))
def test_a_batch_is_read_by_independent_libraries_and_by_our_own_reader(
    commands: list[Any], offset: int
) -> None:
    bodies = [Raw(canonical_bytes(entry)) for entry in commands]
    array = pack_array(len(commands), [pack(commands)])
    batch = PackedBatch(offset=offset, first_command_id=9, commands=array)
    data = bytes(encode_record(batch))
    assert data == encode_record(RawBatch(offset=offset, first_command_id=9, commands=bodies))
    batch.commands = Raw(array_header(len(commands)))
    assert data == b"".join(encode_batch(batch, [pack([entry]) for entry in commands]))
    payload = data[FRAME_BYTES:]
    assert data == frame(payload)
    content = msgpack.unpackb(payload)
    assert list(content) == ["kind", "offset", "first_command_id", "commands", *BLOCK_FIELDS]
    assert (content["kind"], content["offset"], content["first_command_id"]) == ("batch", offset, 9)
    assert content["commands"] == [plain(entry) for entry in commands]
    assert [content[name] for name in BLOCK_FIELDS] == [None] * 4
    decoded = decode_record(payload)
    assert isinstance(decoded, Batch)
    assert decoded.commands == commands
    raw = decode_raw(payload)
    assert isinstance(raw, RawBatch)
    assert [decode_command(command) for command in raw.commands] == commands
    assert [bytes(command) for command in raw.commands] == [bytes(body) for body in bodies]
    keyed = decode_keyed(payload)
    assert isinstance(keyed, KeyedBatch)
    assert (keyed.offset, keyed.first_command_id) == (offset, 9)
    assert keyed.keys == [entry.request_uuid.int for entry in commands]
    assert read_outline(payload) == Outline(offset, 9, len(commands), is_block=False)


LARGE = 1 << 20


@pytest.mark.parametrize("sizes", [[LARGE], [9, LARGE, 9, 9, LARGE + 1, LARGE], [LARGE, 9]])
def test_large_commands_are_parts_of_a_record_where_they_lie(sizes: list[int]) -> None:
    packed = [pack([make_entry(command_data=bytes(size))]) for size in sizes]
    commands = Raw(array_header(len(sizes)))
    parts = encode_batch(PackedBatch(offset=3, first_command_id=9, commands=commands), packed)
    whole = PackedBatch(offset=3, first_command_id=9, commands=pack_array(len(sizes), packed))
    assert b"".join(parts) == encode_record(whole)
    large = [part.obj for part in parts if isinstance(part, memoryview)]
    assert [id(each) for each in large] == [id(each) for each in packed if len(each) >= LARGE]


BEGINNING: dict[str, Any] = {"kind": "batch", "offset": 3, "first_command_id": 4}


@pytest.mark.parametrize("count", [0, 15, 16, 65_535, 65_536])
@pytest.mark.parametrize("number", [0, 127, 128, 2**64 - 1])
def test_an_outline_is_read_of_any_batch(number: int, count: int) -> None:
    fields = {**BEGINNING, "offset": number, "first_command_id": number, "commands": [0] * count}
    payload = msgpack.packb({**fields, **dict.fromkeys(BLOCK_FIELDS)})
    outline = Outline(number, number, count, is_block=False)
    assert read_outline(payload) == outline
    assert read_outline(memoryview(payload)) == outline


NO_BLOCK = msgpack.packb(dict.fromkeys(BLOCK_FIELDS))[1:]


@pytest.mark.parametrize(
    "fields",
    [
        {"header": {}, "roots": {}, "block_indices": [0], "authority": None},
        {"header": {}, "roots": {}, "block_indices": [0], "authority": {"signature": b"\1" * 65}},
        {"header": {}, **dict.fromkeys(BLOCK_FIELDS[1:])},
        {"header": {}, "other": NO_BLOCK},
        {"other": NO_BLOCK},
        {},
    ],
    ids=repr,
)
def test_what_does_not_end_as_a_batch_without_a_block_may_be_one(fields: dict[str, Any]) -> None:
    payload = msgpack.packb({**BEGINNING, "commands": [NO_BLOCK], **fields})
    assert read_outline(payload) == Outline(3, 4, 1, is_block=True)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "batch",
        BEGINNING,
        {**BEGINNING, "authority": None, "commands": []},
        {**BEGINNING, "commands": None},
        {**BEGINNING, "commands": {}},
        {**BEGINNING, "kind": "genesis", "commands": []},
        {**BEGINNING, "kind": None, "commands": []},
        {**BEGINNING, "offset": "3", "commands": []},
        {**BEGINNING, "offset": True, "commands": []},
        {**BEGINNING, "first_command_id": 4.0, "commands": []},
        {"offset": 3, "kind": "batch", "first_command_id": 4, "commands": []},
        {**dict.fromkeys(("kind",), "batch" * 100), "offset": 3, "commands": []},
        {"other": (), **BEGINNING, "commands": []},
    ],
    ids=repr,
)
def test_there_is_no_outline_of_what_does_not_begin_as_a_batch_does(content: Any) -> None:
    payload = msgpack.packb(content)
    assert read_outline(payload) is None
    assert read_outline(payload[:-1]) is None


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x91" * 1000, b"\x84\xa4\xff\xff\xff\xff"], ids=repr
)
def test_there_is_no_outline_of_what_does_not_decode(payload: bytes) -> None:
    assert read_outline(payload) is None


def test_what_is_framed_elsewhere_is_read_here() -> None:
    fields: dict[str, Any] = {
        "kind": "batch",
        "offset": 3,
        "first_command_id": 4,
        "commands": [plain(make_full_entry())],
    }
    data = frame(msgpack.packb(fields))
    length, crc = unpack_frame(data[:FRAME_BYTES])
    assert length == len(data) - FRAME_BYTES
    assert crc_matches(data[FRAME_BYTES:], crc)
    decoded = decode_record(data[FRAME_BYTES:])
    assert isinstance(decoded, Batch)
    assert plain(decoded.commands[0]) == fields["commands"][0]


def test_the_parts_of_a_block_are_framed_with_its_commands() -> None:
    header = Header(
        batch_seq=3,
        prev_block_hash=b"\1" * 32,
        commands_hash=b"\2" * 32,
        batch_root=b"\3" * 32,
        command_count=1,
        first_seq=7,
        timestamp=9,
        signer=b"\4" * 20,
        signature=b"\5" * 65,
    )
    names = ("state_root", "risk_root", "command_root", "obligation_root", "intent_root")
    roots = Roots(**{name: bytes([number]) * 32 for number, name in enumerate(names)})
    authority = Delegation(
        delegator=b"\6" * 20,
        delegate=b"\4" * 20,
        valid_from=1,
        valid_until=2,
        signature=b"\7" * 65,
    )
    batch = RawBatch(
        offset=0,
        first_command_id=1,
        commands=[],
        header=header,
        roots=roots,
        block_indices=[0],
        authority=authority,
    )
    payload = bytes(encode_record(batch))[FRAME_BYTES:]
    outline = read_outline(payload)
    assert outline is not None
    assert outline.is_block
    content = msgpack.unpackb(payload)
    assert content["header"] == msgspec.structs.asdict(header)
    assert content["roots"] == msgspec.structs.asdict(roots)
    assert content["block_indices"] == [0]
    assert content["authority"] == msgspec.structs.asdict(authority)
    for decoded in (decode_raw(payload), decode_record(payload)):
        assert not isinstance(decoded, Genesis)
        assert (decoded.header, decoded.roots) == (header, roots)
        assert (decoded.block_indices, decoded.authority) == ([0], authority)


def test_a_record_without_a_block_says_so_with_nils() -> None:
    payload = bytes(encode_record(RawBatch(offset=0, first_command_id=1, commands=[])))[
        FRAME_BYTES:
    ]
    assert [msgpack.unpackb(payload)[name] for name in BLOCK_FIELDS] == [None] * 4


@given(data=st.binary(min_size=1, max_size=200), bit=st.integers(0))
def test_any_flipped_bit_of_a_payload_is_noticed(data: bytes, bit: int) -> None:
    at = bit % (8 * len(data))
    flipped = bytearray(data)
    flipped[at // 8] ^= 1 << at % 8
    assert crc_matches(data, crc_32c(data))
    assert not crc_matches(flipped, crc_32c(data))


@pytest.mark.parametrize("fields", [{"kind": "other"}, {"offset": "1"}, {"wal_id": 5}])
def test_a_payload_that_is_no_record_of_ours_does_not_decode(fields: dict[str, object]) -> None:
    genesis = msgpack.unpackb(encode_record(make_genesis(0, 1))[FRAME_BYTES:])
    payload = msgpack.packb({**genesis, **fields})
    for decode in (decode_raw, decode_record):
        with pytest.raises(msgspec.DecodeError):
            decode(payload)


def test_a_genesis_survives_its_encoding() -> None:
    genesis = make_genesis(2**40, 2**50)
    decoded = decode_raw(encode_record(genesis)[FRAME_BYTES:])
    assert isinstance(decoded, Genesis)
    assert decoded == genesis


def test_a_record_that_no_reader_would_accept_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    genesis = make_genesis(0, 1)
    length = len(encode_record(genesis)) - FRAME_BYTES
    monkeypatch.setattr(record, "MAX_PAYLOAD_BYTES", length)
    encode_record(genesis)
    monkeypatch.setattr(record, "MAX_PAYLOAD_BYTES", length - 1)
    with pytest.raises(InvariantError, match=f"a record of {length} bytes"):
        encode_record(genesis)
