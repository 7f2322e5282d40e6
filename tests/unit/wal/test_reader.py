"""Reading frames: chunk borders, limits, faults, and the search for a valid record."""

import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.wal import reader as reader_module
from app.wal.decoding import decode_keyed, decode_raw, decode_record
from app.wal.files import FileSystem
from app.wal.reader import (
    CHUNK_BYTES,
    Fault,
    FaultKind,
    SegmentReader,
    decode_frame,
    segment_of,
)
from app.wal.record import FRAME_BYTES, MAX_PAYLOAD_BYTES, RawBatch
from app.wal.segments import Segment, segment_name
from tests.support.journal_entries import make_entry
from tests.support.wal_files import frame, make_record, make_settings, write_wal

START = 4_097
# The fixture only lends a directory; and a busy machine is no failure.
ANY_FIXTURE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def segment(tmp_path: Path) -> Iterator["SegmentFile"]:
    file = SegmentFile(tmp_path)
    yield file
    file.close()


class SegmentFile:
    """A segment that begins at `START` with whatever bytes a test gives it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / segment_name(START)
        self._readers: list[SegmentReader] = []

    def reader(self, data: bytes, files: FileSystem | None = None) -> SegmentReader:
        self.path.write_bytes(data)
        segment = Segment(self.path, START, len(data))
        self._readers.append(SegmentReader(files or FileSystem(), segment))
        return self._readers[-1]

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def frames_of(sizes: list[int]) -> tuple[bytes, list[bytes]]:
    """Frames around payloads of these sizes, which tell each other apart."""
    payloads = [bytes([index % 251 + 1]) * size for index, size in enumerate(sizes)]
    return b"".join(map(frame, payloads)), payloads


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [CHUNK_BYTES - FRAME_BYTES, 1],
        [CHUNK_BYTES - FRAME_BYTES - 1, 1, 1],
        [CHUNK_BYTES - 2 * FRAME_BYTES, 1],
        [CHUNK_BYTES - FRAME_BYTES - 4, 100],
        [CHUNK_BYTES, 5],
        [3 * CHUNK_BYTES + 17, 5, 2 * CHUNK_BYTES],
        [700_000, 700_000, 700_000],
        [1] * 3000,
    ],
    ids=lambda sizes: str(sizes[:3]),
)
def test_records_are_read_whole_wherever_the_borders_of_chunks_fall(
    segment: SegmentFile, sizes: list[int]
) -> None:
    data, payloads = frames_of(sizes)
    reader = segment.reader(data)
    found = list(reader.frames(START))
    assert [bytes(each.payload) for each in found] == payloads
    assert reader.fault is None
    ends = [START + sum(size + FRAME_BYTES for size in sizes[: n + 1]) for n in range(len(sizes))]
    assert [each.end for each in found] == ends
    assert [each.offset for each in found] == [START, *ends[:-1]]


def test_reading_begins_at_any_record_and_ends_at_the_limit(segment: SegmentFile) -> None:
    data, payloads = frames_of([10, 20, 30, 40])
    reader = segment.reader(data)
    second, fourth = START + 18, START + 18 + 28 + 38
    found = list(reader.frames(second, fourth))
    assert [bytes(each.payload) for each in found] == payloads[1:3]
    assert reader.fault is None


def test_nothing_behind_the_limit_is_read(segment: SegmentFile) -> None:
    """A reader beside the writer must not look at what is not durable yet."""
    data, _ = frames_of([10, 20, 30])
    reads: list[tuple[int, int]] = []

    class Watched(FileSystem):
        def read(self, fd: int, length: int, offset: int) -> bytes:
            reads.append((offset, length))
            return super().read(fd, length, offset)

    reader = segment.reader(data, Watched())
    assert len(list(reader.frames(START, START + 46))) == 2
    assert max(offset + length for offset, length in reads) <= 46


def test_a_file_that_is_shorter_than_expected_is_a_fault(segment: SegmentFile) -> None:
    data, _ = frames_of([10, 20])
    reader = segment.reader(data)
    segment.path.write_bytes(data[:-1])
    assert len(list(reader.frames(START))) == 1
    assert reader.fault is not None
    assert reader.fault.kind is FaultKind.INCOMPLETE


@pytest.mark.parametrize(
    ("tail", "kind", "reason"),
    [
        (b"\5", FaultKind.INCOMPLETE, "1 bytes are left"),
        (b"\5\0\0\0\0\0\0", FaultKind.INCOMPLETE, "7 bytes are left"),
        (struct.pack("<II", 5, 0) + b"1234", FaultKind.INCOMPLETE, "12 bytes are left"),
        (struct.pack("<II", 2**32 - 1, 0), FaultKind.INCOMPLETE, "is announced"),
        (bytes(8), FaultKind.ZERO_LENGTH, "length is zero"),
        (bytes(4000), FaultKind.ZERO_LENGTH, "length is zero"),
        (struct.pack("<II", 4, 0) + b"1234", FaultKind.WRONG_CRC, "does not match"),
    ],
)
def test_reading_stops_at_the_first_fault_and_says_what_it_is(
    segment: SegmentFile, tail: bytes, kind: FaultKind, reason: str
) -> None:
    data, payloads = frames_of([10, 20])
    reader = segment.reader(data + tail)
    assert [bytes(each.payload) for each in reader.frames(START)] == payloads
    fault = reader.fault
    assert fault is not None
    assert (fault.offset, fault.kind) == (START + len(data), kind)
    assert reason in fault.reason


def test_a_length_that_no_record_can_have_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / segment_name(0)
    with path.open("wb") as file:
        file.write(struct.pack("<II", MAX_PAYLOAD_BYTES + 1, 0))
        file.truncate(2 * MAX_PAYLOAD_BYTES)  # sparse
    reader = SegmentReader(FileSystem(), Segment(path, 0, 2 * MAX_PAYLOAD_BYTES))
    try:
        assert list(reader.frames(0)) == []
    finally:
        reader.close()
    assert reader.fault is not None
    assert f"at most {MAX_PAYLOAD_BYTES} is possible" in reader.fault.reason


def test_the_own_offset_of_a_record_is_checked(segment: SegmentFile) -> None:
    reader = segment.reader(make_record(START + 1, 1, [make_entry()]))
    (found,) = reader.frames(START)
    fault = decode_frame(reader.segment, found, decode_raw)
    assert isinstance(fault, Fault)
    assert fault.kind is FaultKind.UNDECODABLE
    assert f"its offset is {START + 1}" in fault.reason


def test_a_command_that_is_no_entry_is_only_seen_when_commands_are_decoded(
    segment: SegmentFile,
) -> None:
    fields = {"kind": "batch", "offset": START, "first_command_id": 1, "commands": [{"a": 1}]}
    reader = segment.reader(frame(msgpack.packb(fields)))
    (found,) = reader.frames(START)
    assert isinstance(decode_frame(reader.segment, found, decode_raw), RawBatch)
    assert isinstance(decode_frame(reader.segment, found, decode_keyed), Fault)
    assert isinstance(decode_frame(reader.segment, found, decode_record), Fault)


# -- the search for a valid record ----------------------------------------------------------------


@ANY_FIXTURE
@given(
    junk=st.binary(max_size=300),
    behind=st.binary(max_size=50),
    count=st.integers(0, 2),
    skip=st.integers(0, 300),
)
def test_a_valid_record_is_found_at_any_byte(
    segment: SegmentFile, junk: bytes, behind: bytes, count: int, skip: int
) -> None:
    at = START + len(junk)
    record = make_record(at, 1, [make_entry() for _ in range(count)])
    reader = segment.reader(junk + record + behind)
    found = reader.find_valid_record(START + min(skip, len(junk)))
    assert found == at
    assert reader.find_valid_record(at + 1) is None


@pytest.mark.parametrize("before", range(-20, 4))
def test_a_valid_record_is_found_across_the_border_of_a_chunk(
    segment: SegmentFile, before: int
) -> None:
    at = CHUNK_BYTES + before
    reader = segment.reader(
        b"\xa4kin" * (at // 4) + b"x" * (at % 4) + make_record(START + at, 1, [])
    )
    assert reader.find_valid_record(START) == START + at


@pytest.mark.parametrize("kind", ["batch", "genesis", "snapshot", "k" * 31])
def test_a_record_of_any_kind_is_found(segment: SegmentFile, kind: str) -> None:
    payload = msgpack.packb({"kind": kind, "offset": START + 5, "more": None})
    reader = segment.reader(b"?" * 5 + frame(payload))
    assert reader.find_valid_record(START) == START + 5


def fake(offset: object) -> bytes:
    return frame(msgpack.packb({"kind": "batch", "offset": offset}))


@pytest.mark.parametrize(
    "record",
    [
        fake(START + 1),
        fake(-1),
        fake(2**63),
        fake("4097"),
        fake(4097.0),
        fake(None),
        frame(msgpack.packb({"offset": START, "kind": "batch"})),
        frame(msgpack.packb(["kind", "batch", "offset", START])),
        frame(msgpack.packb({"kind": 5, "offset": START})),
        frame(b"\xa4kind"),
        frame(b"\x82\xa4kind\xa5batch\xa6offset"),
        frame(b"\x82\xa4kind\xa5batch\xa6offset\xcf\0\0"),
        fake(START)[:-1],
        fake(START)[:-1] + b"?",
        bytes(4) + fake(START)[4:],
        b"\xff\xff\xff\xff" + fake(START)[4:],
        b"\xa4kind",
        b"\xa4kind" * 100,
    ],
    ids=repr,
)
def test_what_is_no_record_or_of_another_place_is_not_found(
    segment: SegmentFile, record: bytes
) -> None:
    assert segment.reader(record).find_valid_record(START) is None
    assert segment.reader(record + bytes(100)).find_valid_record(START) is None


lookalikes = st.one_of(
    st.binary(max_size=20),
    st.just(b"\xa4kind"),
    st.integers(START, START + 200).map(lambda offset: b"????\1\2\3\4" + fake(offset)[8:]),
    st.integers(START, START + 200).map(lambda offset: fake(offset)[:4] + b"\1" + fake(offset)[5:]),
)


@ANY_FIXTURE
@given(st.lists(lookalikes))
def test_nothing_is_found_in_bytes_that_only_look_like_records(
    segment: SegmentFile, parts: list[bytes]
) -> None:
    assert segment.reader(b"".join(parts)).find_valid_record(START) is None


def test_the_search_is_bounded_when_everything_looks_like_a_record(
    segment: SegmentFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these announces all the rest as its payload: checking them all would be quadratic."""
    monkeypatch.setattr(reader_module, "_SEARCH_BYTES", 10_000)
    body, at = b"", START
    for _ in range(200):
        announced = struct.pack("<II", 1_000, 0)
        body += announced + msgpack.packb({"kind": "batch", "offset": at})
        at = START + len(body)
    checked = 0

    class Counting(FileSystem):
        def read(self, fd: int, length: int, offset: int) -> bytes:
            nonlocal checked
            checked += length if length == 1_000 else 0
            return super().read(fd, length, offset)

    found = segment.reader(body + bytes(1_000), Counting()).find_valid_record(START)
    assert found is not None, "giving up must not let anything be cut"
    assert checked <= 10_000


def test_a_region_of_zeros_is_told_from_one_with_a_single_byte_in_it(segment: SegmentFile) -> None:
    size = 2 * CHUNK_BYTES + 5
    reader = segment.reader(bytes(size) + b"\1")
    assert reader.is_zero(START, START + size)
    assert not reader.is_zero(START, START + size + 1)
    assert not reader.is_zero(START + size, START + size + 1)
    assert not reader.is_zero(START, START + size + 2), "what is not there is not zero"
    assert reader.is_zero(START, START)


def test_the_segment_of_an_offset_is_the_one_that_holds_it_and_the_last_for_the_end(
    tmp_path: Path,
) -> None:
    wal = write_wal(make_settings(tmp_path), [[1], [1], [1]])
    segments = [Segment(each.path, each.offset, 1) for each in wal.genesis]
    assert [segment_of(segments, each.offset) for each in wal.records] == [0, 1, 2]
    assert [segment_of(segments, each.offset) for each in wal.genesis] == [0, 1, 2]
    assert segment_of(segments, wal.end) == 2
    with pytest.raises(ValueError, match="before the first segment"):
        segment_of(segments[1:], 0)
