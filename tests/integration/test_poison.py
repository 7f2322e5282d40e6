"""What Postgres could not hold is refused at the door, and does no harm where it got in."""

import json
import struct
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import msgpack
import msgspec
import pytest
from msgspec.structs import force_setattr

from app.model.entry import Entry
from app.wal.decoding import decode_record
from app.wal.files import FILE_MODE
from tests.integration.conftest import MakeService
from tests.support.database import query
from tests.support.foreign_wal import plain, read_wal
from tests.support.http_entries import (
    JSON,
    MSGPACK,
    accepted,
    decoded,
    flush,
    json_entry,
    metric,
    packed,
    post,
    refused,
)
from tests.support.journal_entries import make_entry, make_event, make_full_entry
from tests.support.nesting import deepest, nested_digest, nested_entry
from tests.support.table_audit import assert_tables_hold
from tests.support.wal_files import ENVIRONMENT, crc_32c, make_settings, write_wal
from tests.support.wire_forms import to_json

MAX_INT64: Final = 2**63 - 1
TEXTS: Final = [
    "events[0].event_topic",
    "events[0].event_key",
    "outbox_appends[0].directive_id",
    "outbox_appends[0].action_key",
    "outbox_appends[0].idempotency_key",
    "cash_withdrawal_side_effect.request_id",
    "balance_updates[0].reference_id",
]
TYPE_NAMES: Final = ["command_type", "events[0].event_type", "balance_updates[0].reason"]
COUNTS: Final = [
    "received_ts_ms",
    "duration_ms",
    "pre_digest.next_order_id",
    "pre_digest.next_trade_id",
    "post_digest.l2_seq",
    "outbox_appends[0].nonce",
    "fill_side_effects[0].event_idx",
    "fill_side_effects[0].trade_id",
    "balance_updates[0].balance_update_seq",
]
INTEGERS: Final = [
    "order_id",
    "events[0].l2_sequence",
    "outbox_appends[0].created_at_ms",
    "outbox_appends[0].expires_at_ms",
    "cash_withdrawal_side_effect.timestamp_ms",
    "balance_updates[0].source_command_id",
    "balance_updates[0].timestamp_ms",
]
DECIMALS: Final = [
    "fill_side_effects[0].taker_ledger_delta",
    "fill_side_effects[0].maker_ledger_delta",
    "fill_side_effects[0].taker_premium_delta",
    "fill_side_effects[0].maker_premium_delta",
    "fill_side_effects[0].underlying_notional",
    "cash_withdrawal_side_effect.amount",
    "cash_withdrawal_side_effect.balance_after",
    "balance_updates[0].delta",
    "balance_updates[0].balance_after",
]
BAD_TEXT: Final = ["\0", "a\0b", "x" * 1025, "é" * 513, "𝄞" * 257, 5, b"x"]
BAD_TYPE_NAME: Final = ["", "\0", "1a", "a b", "é", "a\n", "x" * 65, 5]
BAD_INTEGER: Final = [
    *(MAX_INT64 + 1, -MAX_INT64 - 2, 2**64 - 1, 2**64),
    *(1.5, "1", True, b"\1"),
]
NO_DECIMAL: Final = [
    *("NaN", "-NaN", "sNaN", "Infinity", "-Infinity", "inf", "1e200000", "9" * 10_000),
    *("", "\0", "1\0", "0x1", "--1", "1,5", "twelve"),
]
# Numbers all the same, which Postgres can hold.
UNUSUAL_DECIMAL: Final = [
    *("1e5", "1E-5", "1_000", " 1", "1 ", "1\n", "+1", ".5", "1.", "\N{ARABIC-INDIC DIGIT ONE}"),
    *("9" * 29, "0." + "0" * 28 + "1", "1." + "1" * 28, "9" * 28 + ".9"),
]
BAD_DECIMAL: Final = [*NO_DECIMAL, *UNUSUAL_DECIMAL, 1, 1.5]
EDGES: Final[dict[str, list[Any]]] = {
    **dict.fromkeys(TEXTS, BAD_TEXT),
    "events[0].event_topic": [*BAD_TEXT, "", "x" * 256],
    **dict.fromkeys(TYPE_NAMES, BAD_TYPE_NAME),
    **{path: [*BAD_INTEGER, -1] for path in COUNTS},
    **dict.fromkeys(INTEGERS, BAD_INTEGER),
    **dict.fromkeys(DECIMALS, BAD_DECIMAL),
}


def changed(entry: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`entry` with the value of one field replaced."""
    owner: Any = entry
    *outer, name = path.replace("[0]", "").split(".")
    for step in outer:
        owner = owner[step][0] if isinstance(owner[step], list) else owner[step]
    owner[name] = value
    return entry


def in_json(path: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bytes):
        value = [value.decode("latin-1")]
    return changed(to_json(make_full_entry()), path, value)


def in_msgpack(path: str, value: Any) -> dict[str, Any]:
    entry = plain(make_full_entry())
    entry.setdefault("pre_digest", {})
    return changed(entry, path, value)


@pytest.fixture
def send(client: httpx.Client) -> Iterator[Callable[..., httpx.Response]]:
    def request(entries: list[dict[str, Any]], *, msgpack_body: bool) -> httpx.Response:
        if msgpack_body:
            return client.post(
                "/entries", content=packed(*entries), headers={"content-type": MSGPACK}
            )
        body = json.dumps({"entries": entries}).encode()
        return client.post("/entries", content=body, headers={"content-type": JSON})

    before = decoded(client.get("/checkpoint"))["durable_offset"]
    yield request
    assert decoded(client.get("/checkpoint"))["durable_offset"] == before, "something was written"


@pytest.mark.parametrize("msgpack_body", [False, True], ids=["json", "msgpack"])
@pytest.mark.parametrize("path", EDGES)
def test_every_edge_of_a_field_is_refused_at_the_door(
    send: Callable[..., httpx.Response], path: str, msgpack_body: bool
) -> None:
    make = in_msgpack if msgpack_body else in_json
    # Its format has no way to say some of them.
    values = [
        value
        for value in EDGES[path]
        if not (msgpack_body and type(value) is int and not -(2**63) <= value < 2**64)
    ]
    response = send([make(path, value) for value in values], msgpack_body=msgpack_body)
    faults = refused(response, 42201)["errors"]
    assert [(fault["entry"], fault["path"]) for fault in faults] == [
        (index, path) for index in range(len(values))
    ], faults


@pytest.mark.parametrize("path", TEXTS)
def test_text_that_is_no_utf8_is_refused_at_the_door(
    client: httpx.Client, send: Callable[..., httpx.Response], path: str
) -> None:
    """A lone surrogate in JSON, other bytes in MessagePack."""
    assert send([in_json(path, "a\ud800")], msgpack_body=False).status_code in (400, 422)
    for bad in (b"\xff\xfe\xfd\xfc", b"abc\xc3", b"\xed\xa0\x80a", b"\xc0\x80ab"):
        body = packed(in_msgpack(path, "MARK")).replace(b"MARK", bad)
        response = client.post("/entries", content=body, headers={"content-type": MSGPACK})
        assert response.status_code in (400, 422), response.text


# -- written into the log by hand ----------------------------------------------------------------


def is_of_its_kind(path: str, value: Any) -> bool:
    """Whether a log can hold it: what is of another kind does not decode."""
    if path in {*COUNTS, *INTEGERS}:
        return type(value) is int and -(2**63) <= value < 2**64
    return isinstance(value, str)


def is_poison(path: str, value: Any) -> bool:
    """Whether it is of those that Postgres can not hold."""
    if path in DECIMALS:
        return value in NO_DECIMAL
    if isinstance(value, str):
        return "\0" in value
    # A digest is one column of bytes, whatever its numbers.
    return "digest" not in path and abs(value) > MAX_INT64


def edge_entry(path: str, value: Any) -> Entry:
    """A full entry with one field changed."""
    entry = make_full_entry()
    owner: Any = entry
    *outer, name = path.replace("[0]", "").split(".")
    for step in outer:
        part = getattr(owner, step)
        owner = part[0] if isinstance(part, list) else part
    force_setattr(owner, name, value)
    return entry


def append_by_hand(wal_dir: Path, *batches: list[bytes]) -> None:
    """Append records of entries to a log that nobody has open, framed by other libraries."""
    records = list(read_wal(wal_dir))
    offset = records[-1].end
    command_id = 1 + sum(len(record.content.get("commands", [])) for record in records)
    with max(wal_dir.glob("*.wal")).open("r+b") as segment:
        segment.seek(offset - int(max(wal_dir.glob("*.wal")).stem))
        for commands in batches:
            payload = batch_by_hand(offset, command_id, commands)
            segment.write(struct.pack("<II", len(payload), crc_32c(payload)) + payload)
            offset += 8 + len(payload)
            command_id += len(commands)


def batch_by_hand(offset: int, command_id: int, commands: list[bytes]) -> bytes:
    payload: bytes = msgpack.packb(
        {
            "kind": "batch",
            "offset": offset,
            "first_command_id": command_id,
            "commands": "MARK",
            "header": None,
            "roots": None,
            "block_indices": None,
            "authority": None,
        }
    )
    array = msgpack.Packer().pack_array_header(len(commands)) + b"".join(commands)
    return payload.replace(msgpack.packb("MARK"), array)


def test_poison_in_the_log_ends_in_dead_letters_and_what_is_behind_it_goes_on(
    make_service: MakeService, database_url: str
) -> None:
    """Every edge of every field; those that Postgres can hold lie between those it can not."""
    edges = [
        (path, value)
        for path, values in EDGES.items()
        for value in values
        if is_of_its_kind(path, value)
    ]
    poison = [edge_entry(*edge) for edge in edges if is_poison(*edge)]
    poison.append(make_full_entry(events=[make_event("x" * 9_000_000)]))  # for its index
    fine = [edge_entry(*edge) for edge in edges if not is_poison(*edge)]
    fine += [make_full_entry() for _ in range(len(poison) + 1 - len(fine))]
    pairs = zip_longest(fine, poison)
    batches = [[entry for pair in pairs for entry in pair if entry], [make_full_entry()]]
    service = make_service(BLOCK_COMMANDS="None", ENVIRONMENT=ENVIRONMENT)
    wal = write_wal(make_settings(service.data_dir, environment=ENVIRONMENT), [[]])
    packed = [[msgpack.packb(plain(entry)) for entry in batch] for batch in batches]
    append_by_hand(wal.settings.wal_dir, *packed)
    wal.genesis[0].path.chmod(FILE_MODE)
    service.start()
    newest = make_entry()
    journaled = dict(enumerate([*chain(*batches), newest], 1))
    with service.client() as client:
        assert accepted(post(client, to_json(newest)))["last_command_id"] == len(journaled)
        found = flush(client)
        assert (found["last_command_id"], found["dead_letters"]) == (len(journaled), len(poison))
        assert found["unreplicated_bytes"] == 0
        readiness = client.get("/readyz")
        assert readiness.status_code == 200
        assert readiness.json()["parts"]["replication"]["state"] == "degraded"
        assert metric(client, "ht_journal_dead_letters_total") == len(poison)
        for entry, status in [(fine[0], "replicated"), (poison[0], "dead_letter")]:
            assert client.get(f"/entries/{entry.request_uuid}").json()["status"] == status
        # Once more under its request_uuid, with other content.
        refused(post(client, json_entry(request_uuid=str(poison[1].request_uuid))), 40901)
    assert service.terminate() == 0
    dead = {entry.request_uuid for entry in poison}
    assert_tables_hold(database_url, journaled, ENVIRONMENT, dead)
    letters = query(database_url, "SELECT entry, error FROM dead_letters ORDER BY command_id")
    assert [msgpack.unpackb(row[0]) for row in letters] == [plain(entry) for entry in poison]
    assert all(row[1] for row in letters)
    assert "Traceback" not in service.log


def test_what_can_just_be_read_ends_in_dead_letters_and_ends_nothing_else(
    make_service: MakeService, database_url: str
) -> None:
    """Nested so deeply that an encoder, or whoever compares it, may have too many calls around."""

    def read(depth: int) -> bool:
        try:
            decode_record(batch_by_hand(0, 1, [nested_entry(depth)]))
        except msgspec.DecodeError:
            return False
        return True

    depth, _ = deepest(read)
    # Recovery has calls of its own around it.
    nested = {uuid4(): depth - less for less in range(2, 14, 2)}
    service = make_service(BLOCK_COMMANDS="None", ENVIRONMENT=ENVIRONMENT)
    wal = write_wal(make_settings(service.data_dir, environment=ENVIRONMENT), [[]])
    entries = [nested_entry(depth, request_uuid=uuid) for uuid, depth in nested.items()]
    append_by_hand(wal.settings.wal_dir, *([entry] for entry in entries))
    wal.genesis[0].path.chmod(FILE_MODE)
    service.start()
    with service.client() as client:
        newest = accepted(post(client, json_entry()))["last_command_id"]
        assert flush(client)["last_command_id"] == newest
        statuses = {uuid: client.get(f"/entries/{uuid}").json()["status"] for uuid in nested}
        # How much an interpreter leaves an encoder is its own affair.
        assert set(statuses.values()) <= {"dead_letter", "replicated"}
        for uuid in nested:
            refused(post(client, json_entry(request_uuid=str(uuid))), 40901)
    letters = dict(query(database_url, "SELECT request_uuid, entry FROM dead_letters"))
    assert letters.keys() == {uuid for uuid in nested if statuses[uuid] == "dead_letter"}
    assert all(letters[uuid].endswith(nested_digest(nested[uuid])) for uuid in letters)
    assert "Traceback" not in service.log
