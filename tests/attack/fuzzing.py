"""Coverage-guided fuzzing (atheris) of everything that decodes what others have written.

`python -m tests.attack.fuzzing TARGET FOLDER -runs=N -seed=S` feeds one of `TARGETS`; FOLDER is the
corpus, which real entries begin. A target returns, or the run ends with what it raised and a file
that reproduces it. Further options are libFuzzer's.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

with atheris.instrument_imports(include=["app"]):
    import msgspec

    from app.errors import CorruptionError, RequestError, SettingsError, StartRefused
    from app.model.codec import PreparedRequest, RequestCodec, canonical_bytes, pack
    from app.model.packing import array_header
    from app.model.rules import check_entry
    from app.model.weight import check_weight
    from app.tokens import read_tokens
    from app.wal.checkpoint import Checkpoint, decode_checkpoint
    from app.wal.decoding import decode_raw, decode_record
    from app.wal.files import FileSystem
    from app.wal.reader import SegmentReader
    from app.wal.record import Batch, encode_record
    from app.wal.scan import Evidence, scan_log
    from app.wal.segments import list_segments

from tests.support.journal_entries import make_entry, make_full_entry
from tests.support.wal_files import ENVIRONMENT, frame, make_genesis, make_record
from tests.support.wire_forms import to_json

MAX_FIELD_BYTES: Final = 4096
MAX_ENTRIES: Final = 20
MAX_BODY_BYTES: Final = 1 << 15
_OPENING: Final = b"\x81\xa7entries"
_codec: Final = RequestCodec(MAX_ENTRIES, MAX_FIELD_BYTES)
_files: Final = FileSystem()
_folder: Final = Path(tempfile.mkdtemp(prefix="fuzzing-"))


def fuzz_request(data: bytes) -> None:
    """A body in MessagePack or JSON, as the first byte says: refused, or the same all the way."""
    as_json, body = bool(data[:1] and data[0] & 1), data[1:]
    try:
        prepared = _prepare(body, as_json=as_json)
    except RequestError:
        return
    record = decode_record(_payload(len(prepared.entries), bytes(prepared.packed)))
    assert isinstance(record, Batch)
    content = [canonical_bytes(entry) for entry in prepared.entries]
    assert [canonical_bytes(entry) for entry in record.commands] == content
    for entry in record.commands:
        check_entry(entry, MAX_FIELD_BYTES)
    in_json = json.dumps({"entries": [to_json(entry) for entry in record.commands]}).encode()
    in_msgpack = _OPENING + array_header(len(content)) + pack(record.commands)
    for again in (_codec.prepare(in_json, json=True), _codec.prepare(in_msgpack, json=False)):
        assert [canonical_bytes(entry) for entry in again.entries] == content


def fuzz_record(data: bytes) -> None:
    """A payload with the right CRC that nobody here has written."""
    for decode in (decode_raw, decode_record):
        with suppress(msgspec.DecodeError):
            decode(data)


def fuzz_log(data: bytes) -> None:
    """A log: a genesis, then a record of the first half and whatever bytes the second half is."""
    wal_dir = _folder / "wal"
    shutil.rmtree(wal_dir, ignore_errors=True)
    wal_dir.mkdir()
    half = len(data) // 2
    genesis = bytes(encode_record(make_genesis(0, 1)))
    path = wal_dir / f"{0:020}.wal"
    path.write_bytes(genesis + frame(data[:half]) + data[half:])
    with suppress(CorruptionError, StartRefused):
        scan_log(_files, wal_dir, ENVIRONMENT, None, Evidence(0, "nobody"), 100)
    with closing(SegmentReader(_files, list_segments(_files, wal_dir)[0])) as reader:
        for one in reader.frames(0):
            assert one.end <= path.stat().st_size


def fuzz_checkpoint(data: bytes) -> None:
    """A checkpoint file: None when it is torn."""
    checkpoint = decode_checkpoint(data)
    assert checkpoint is None or min(checkpoint.wal_offset, checkpoint.retained_offset) >= 0


def fuzz_tokens(data: bytes) -> None:
    """A tokens file."""
    path = _folder / "tokens.json"
    path.write_bytes(data)
    path.chmod(0o600)
    with suppress(SettingsError):
        read_tokens("TOKENS_FILE", path)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    "request": fuzz_request,
    "record": fuzz_record,
    "log": fuzz_log,
    "checkpoint": fuzz_checkpoint,
    "tokens": fuzz_tokens,
}


def seeds(target: str) -> Iterator[bytes]:
    """What a corpus begins with."""
    entries = [make_entry(), make_full_entry()]
    content = pack(entries)
    if target == "request":
        yield b"\0" + _OPENING + array_header(len(entries)) + content
        yield b"\1" + json.dumps({"entries": [to_json(entry) for entry in entries]}).encode()
        yield b"\0\xdf\0\0\0\1\xd9\7entries\xdd\0\0\0\2" + content
    elif target == "record":
        yield bytes(encode_record(make_genesis(0, 1)))[8:]
        yield _payload(len(entries), content)
    elif target == "log":
        record = make_record(0, 1, entries)
        yield record[8:] + record
    elif target == "checkpoint":
        yield msgspec.json.encode(
            Checkpoint(wal_id="0" * 32, environment="e", wal_offset=4096, last_command_id=7)
        )
    else:
        yield b'{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["read"]}]}' % (b"0" * 64)
        yield b'{"tokens": []}'


def _prepare(body: bytes, *, as_json: bool) -> PreparedRequest:
    check_weight(body, json=as_json, max_body_bytes=MAX_BODY_BYTES, max_entries=MAX_ENTRIES)
    return _codec.prepare(body, json=as_json)


def _payload(count: int, packed: bytes) -> bytes:
    head = b"\x84\xa4kind\xa5batch\xa6offset\0\xb0first_command_id\1\xa8commands"
    return head + array_header(count) + packed


def main() -> None:
    """Write the seeds and begin; never returns."""
    target, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[3:], str(corpus)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
