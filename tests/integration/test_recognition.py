"""Large bodies, which are recognized instead of decoded: nothing else is different about them."""

import shutil
from typing import Any

import httpx
import msgpack
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import query
from tests.support.feed_audit import journaled
from tests.support.http_entries import (
    MSGPACK,
    accepted,
    flush,
    json_entry,
    metric,
    msgpack_entry,
    post,
    post_msgpack,
    refused,
)
from tests.support.service import Service
from tests.support.waiting import wait_for

# So much that a request of some entries is recognized.
LARGE: dict[str, Any] = {"post_digest": {"symbols": {"bids": list(range(1000))}}}
IN_USE = "compiled functions are in use: app.model.grammar"


def recognizing(service: Service, client: httpx.Client) -> None:
    """Have the compiled functions loaded: the first large body asks for them."""
    pytest.importorskip("numba", reason="numba has no wheel here")
    accepted(post(client, json_entry(**LARGE), json_entry(**LARGE)))
    wait_for(lambda: IN_USE in service.log, "large bodies are recognized")


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(BLOCK_COMMANDS="Tick", ALLOW_NEW_WAL="true").start()


@pytest.mark.parametrize("in_json", [True, False], ids=["json", "msgpack"])
def test_repeated_and_conflicting_entries_are_told_from_new_ones(
    service: Service, database_url: str, *, in_json: bool
) -> None:
    make, send = (json_entry, post) if in_json else (msgpack_entry, post_msgpack)
    with service.client() as client:
        recognizing(service, client)
        known = [make(**LARGE) for _ in range(3)]
        first = accepted(send(client, *known))["first_command_id"]
        again = accepted(send(client, make(**LARGE), *known, make(**LARGE)))
        assert [each["command_id"] for each in again["duplicates"]] == [first, first + 1, first + 2]
        assert again["last_command_id"] - again["first_command_id"] == 1
        twice = make(**LARGE)
        assert len(accepted(send(client, twice, twice))["duplicates"]) == 1
        other = {**known[1], "duration_ms": 5}
        problem = refused(send(client, make(**LARGE), other), 40901)
        assert [each["entry"] for each in problem["errors"]] == [1]
        end = flush(client)["last_command_id"]
    service.kill()
    assert journaled(service.data_dir / "wal").keys() == set(range(1, end + 1))
    (found,) = query(database_url, "SELECT count(*), max(command_id) FROM engine_commands")
    assert found == (end, end)


def test_the_same_entries_in_json_and_messagepack_are_the_same_content(service: Service) -> None:
    with service.client() as client:
        recognizing(service, client)
        in_json = [json_entry(**LARGE) for _ in range(3)]
        accepted(post(client, *in_json))
        in_msgpack = [
            msgpack_entry(**{**LARGE, "request_uuid": each["request_uuid"]}) for each in in_json
        ]
        assert len(accepted(post_msgpack(client, *in_msgpack))["duplicates"]) == len(in_json)


def test_blocks_cover_the_commands_among_others(service: Service) -> None:
    with service.client() as client:
        recognizing(service, client)
        without = [json_entry(command_type="Order", **LARGE) for _ in range(2)]
        assert accepted(post(client, *without)).get("block_height") is None
        tick = json_entry(command_type="Tick", **LARGE)
        height = accepted(post(client, json_entry(**LARGE), tick))["block_height"]
        block = client.get(f"/blocks/{height}").json()
        assert block["command_count"] == 1
        flush(client)
    service.kill()
    service.start()
    with service.client() as client:
        assert client.get(f"/blocks/{height}").json()["block_hash"] == block["block_hash"]


def test_a_block_of_recognized_commands_is_the_one_that_the_log_gives(service: Service) -> None:
    """It is derived again of decoded entries at the start, and compared with the recorded one."""
    event = {"event_topic": "ticks", "event_type": "Tick", "l2_sequence": 300}
    with service.client() as client:
        recognizing(service, client)
        ticks = [
            msgpack_entry(command_type="Tick", events=[event | {"event_data": bytes([number])}] * 2)
            for number in range(0, 256, 8)
        ]
        height = accepted(post_msgpack(client, *ticks))["block_height"]
        block = client.get(f"/blocks/{height}").json()
        assert block["command_count"] == len(ticks)
    service.kill()
    shutil.rmtree(service.data_dir / "commitments")
    service.start()
    with service.client() as client:
        assert client.get(f"/blocks/{height}").json() == block


def test_what_is_wrong_with_a_large_body_is_named(service: Service) -> None:
    with service.client() as client:
        recognizing(service, client)
        before = metric(client, "ht_journal_wal_entries_total")
        bad = msgpack_entry(command_type="no name", **LARGE)
        problem = refused(post_msgpack(client, msgpack_entry(**LARGE), bad), 42201)
        assert "no name" in problem["detail"]
        body = msgpack.packb({"entries": [msgpack_entry(**LARGE)]})
        cut = client.post("/entries", content=body[:-1], headers={"content-type": MSGPACK})
        refused(cut, 40001)
        assert metric(client, "ht_journal_wal_entries_total") == before
