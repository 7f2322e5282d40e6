"""A key that comes twice: the last value counts, and the first one must not be able to hide poison.

Entries are journaled as they were sent. What the API takes, recovery and replication must be able
to read, however deep in calls each of them is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgpack
import pytest

from app.errors import InvalidBody
from app.model.codec import PreparedRequest, RequestCodec
from app.wal.decoding import decode_keyed, decode_raw, decode_record
from app.wal.record import Batch, KeyedBatch, RawBatch
from tests.attack.conftest import NO_DATABASE
from tests.support.http_entries import MSGPACK, accepted, msgpack_entry
from tests.support.nesting import below_calls, deepest, nested_digest
from tests.support.service import Service

T = TypeVar("T")
CALLS_AROUND_THE_API: Final = 20
codec = RequestCodec(max_entries=10, max_field_bytes=1 << 20)


def hiding(depth: int) -> bytes:
    """A body whose one entry has a digest nested so deeply behind an empty one."""
    fields = b"".join(
        msgpack.packb(key) + msgpack.packb(value) for key, value in msgpack_entry().items()
    )
    key = msgpack.packb("pre_digest")
    return b"".join((b"\x81\xa7entries\x91\x85", fields, key, nested_digest(depth), key, b"\x80"))


def deepest_accepted(prepare: Callable[[bytes], T | None]) -> T:
    """What becomes of the deepest body that is accepted."""
    _, found = deepest(lambda depth: prepare(hiding(depth)))
    return found


def test_what_is_accepted_can_be_read_at_any_depth_of_calls() -> None:
    def prepare(body: bytes) -> PreparedRequest | None:
        try:
            return below_calls(CALLS_AROUND_THE_API, lambda: codec.prepare(body, json=False))
        except InvalidBody:
            return None

    packed = deepest_accepted(prepare).packed
    payload = msgpack.packb({"kind": "batch", "offset": 0, "first_command_id": 1, "commands": [0]})
    payload = bytes(payload[:-1]) + packed
    for calls in (0, CALLS_AROUND_THE_API, 300):
        raw = below_calls(calls, lambda: decode_raw(payload))
        keyed = below_calls(calls, lambda: decode_keyed(payload))
        record = below_calls(calls, lambda: decode_record(payload))
        assert isinstance(raw, RawBatch)
        assert isinstance(keyed, KeyedBatch)
        assert isinstance(record, Batch)
        assert keyed.keys == [record.commands[0].request_uuid.int]
        assert record.commands[0].pre_digest.symbols == {}


@pytest.mark.timeout(60)
def test_a_service_starts_again_on_the_deepest_entry_it_has_taken(tmp_path: Path) -> None:
    with Service(tmp_path / "data", NO_DATABASE, ALLOW_NEW_WAL="true") as service:
        service.start()
        with service.client() as client:

            def send(body: bytes) -> int | None:
                response = client.post("/entries", content=body, headers={"content-type": MSGPACK})
                if response.status_code == 400:
                    return None
                return int(accepted(response)["last_command_id"])

            last = deepest_accepted(send)
        service.kill()
        service.start()
        with service.client() as client:
            response = client.post("/entries", content=hiding(0), headers={"content-type": MSGPACK})
        assert accepted(response)["first_command_id"] > last
