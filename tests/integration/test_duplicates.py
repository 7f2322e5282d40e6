"""Repeated `request_uuid`s: duplicates and conflicts (protocol, section 2)."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.integration.conftest import MakeService
from tests.support.database import outage, query
from tests.support.http_entries import (
    accepted,
    durable_offset,
    flush,
    json_entry,
    metric,
    msgpack_entry,
    post,
    post_msgpack,
    refused,
)
from tests.support.postgres_cluster import Cluster


def listed(answer: dict[str, Any]) -> dict[str, int]:
    """The duplicates of an acknowledgement."""
    return {each["request_uuid"]: each["command_id"] for each in answer["duplicates"]}


def test_a_repeated_request_is_answered_with_its_first_command_ids_and_not_written_again(
    client: httpx.Client,
) -> None:
    entries = [json_entry(), json_entry()]
    first = accepted(post(client, *entries))
    accepted(post(client, json_entry()))
    end, counted = durable_offset(client), metric(client, "ht_journal_duplicates_total")
    again = accepted(post(client, *entries))
    assert (again["count"], again["first_command_id"], again["last_command_id"]) == (2, None, None)
    assert listed(again) == {
        entry["request_uuid"]: first["first_command_id"] + index
        for index, entry in enumerate(entries)
    }
    assert again["wal_offset"] == first["wal_offset"]
    assert durable_offset(client) == end
    assert metric(client, "ht_journal_duplicates_total") == counted + 2


def test_duplicates_are_left_out_of_the_command_ids_of_a_request(client: httpx.Client) -> None:
    known = json_entry()
    first = accepted(post(client, known))["first_command_id"]
    answer = accepted(post(client, json_entry(), known, json_entry()))
    assert answer["count"] == 3
    assert answer["last_command_id"] - answer["first_command_id"] == 1
    assert listed(answer) == {known["request_uuid"]: first}


def test_an_entry_twice_in_one_request_is_journaled_once(client: httpx.Client) -> None:
    entry = json_entry()
    answer = accepted(post(client, entry, entry))
    assert answer["count"] == 2
    assert answer["first_command_id"] == answer["last_command_id"]
    assert listed(answer) == {entry["request_uuid"]: answer["first_command_id"]}


@pytest.mark.parametrize(
    "defaults",
    [
        {"command_type": None, "response_data": None, "order_id": None, "duration_ms": 0},
        {"events": [], "outbox_appends": [], "fill_side_effects": [], "balance_updates": []},
        {"cash_withdrawal_side_effect": None, "command_identity_hash": None},
        {"pre_digest": {}, "post_digest": {"next_order_id": 0, "l2_seq": 0, "symbols": {}}},
    ],
)
def test_defaults_that_are_spelled_out_are_the_same_content(
    client: httpx.Client, defaults: dict[str, Any]
) -> None:
    entry = json_entry()
    accepted(post(client, entry))
    assert listed(accepted(post(client, {**entry, **defaults})))


def test_the_same_content_in_another_format_is_the_same_content(client: httpx.Client) -> None:
    wallet = bytes(range(20))
    update = {
        "balance_update_seq": 1,
        "delta": "-1.25",
        "balance_after": "8",
        "reason": "Fee",
        "timestamp_ms": 5,
    }
    in_json = json_entry(balance_updates=[{**update, "wallet": "0x" + wallet.hex().upper()}])
    in_msgpack = msgpack_entry(
        request_uuid=UUID(in_json["request_uuid"]), balance_updates=[{**update, "wallet": wallet}]
    )
    accepted(post(client, in_json))
    assert listed(accepted(post_msgpack(client, in_msgpack)))


@pytest.mark.parametrize(
    "other",
    [
        {"received_ts_ms": 1},
        {"command_data": "AA=="},
        {"command_type": "Other"},
        {"response_data": ""},
        {"order_id": 0},
        {"duration_ms": 1},
        {"post_digest": {"symbols": {"A": None}}},
        {"events": [{"event_topic": "t", "event_data": "", "event_type": "E"}]},
        {"rsm_state_digest": ""},
    ],
)
def test_any_other_field_makes_it_a_conflict(client: httpx.Client, other: dict[str, Any]) -> None:
    used = json_entry()
    accepted(post(client, used))
    before = durable_offset(client)
    found = refused(post(client, json_entry(), {**used, **other}, json_entry()), 40901)
    [error] = found["errors"]
    assert (error["entry"], error["path"]) == (1, "request_uuid")
    assert used["request_uuid"] in error["message"]
    assert durable_offset(client) == before


def test_a_request_uuid_twice_in_one_request_with_other_content_is_a_conflict(
    client: httpx.Client,
) -> None:
    before = durable_offset(client)
    entry = json_entry(order_id=1)
    found = refused(post(client, entry, {**entry, "order_id": 2}), 40901)
    assert [error["entry"] for error in found["errors"]] == [1]
    assert durable_offset(client) == before
    refused(client.get(f"/entries/{entry['request_uuid']}"), 40402)


def test_a_conflict_in_messagepack_is_answered_in_messagepack(client: httpx.Client) -> None:
    used = msgpack_entry(order_id=1)
    accepted(post_msgpack(client, used))
    response = post_msgpack(client, {**used, "order_id": 2})
    assert str(UUID(bytes=used["request_uuid"])) in refused(response, 40901)["detail"]
    assert response.headers["content-type"] == "application/msgpack"


def test_the_entries_beside_a_conflict_can_be_sent_without_it(client: httpx.Client) -> None:
    used, beside = json_entry(order_id=1), json_entry()
    accepted(post(client, used))
    refused(post(client, beside, {**used, "order_id": 2}), 40901)
    assert listed(accepted(post(client, beside))) == {}


def test_duplicates_are_known_after_a_crash_and_with_postgres_down(
    make_service: MakeService, cluster: Cluster, database_url: str
) -> None:
    service = make_service().start()
    batches = [[json_entry(order_id=number) for _ in range(20)] for number in range(15)]
    with service.client() as client:
        firsts = [accepted(post(client, *batch))["first_command_id"] for batch in batches]
        flush(client)
    service.kill()
    with outage(cluster, database_url):
        service.start()
        with service.client() as client:
            end = durable_offset(client)
            for first, batch in zip(firsts, batches, strict=True):
                assert list(listed(accepted(post(client, *batch))).values()) == list(
                    range(first, first + 20)
                )
            refused(post(client, {**batches[3][7], "order_id": -1}), 40901)
            assert durable_offset(client) == end
            fresh = accepted(post(client, json_entry()))
            assert fresh["first_command_id"] > firsts[-1] + 19


def test_beyond_the_window_postgres_keeps_the_first_row_and_nothing_of_the_later_one(
    make_service: MakeService, database_url: str
) -> None:
    """The later one has all that an entry can have below it, and none of it may land."""
    wallet = "0x" + "07" * 20
    event = {"event_topic": "kept", "event_data": "", "event_type": "E"}
    update = {
        "balance_update_seq": 0,
        "wallet": wallet,
        "delta": "1",
        "reason": "Fee",
        "timestamp_ms": 1,
    }
    fill = {
        "event_idx": 0,
        "trade_id": 1,
        **{
            f"{side}_{kind}_delta": "0"
            for side in ("taker", "maker")
            for kind in ("ledger", "premium")
        },
    }
    append = {
        "directive_id": "d",
        "action_key": "a",
        "wallet": wallet,
        "account": wallet,
        "signer": wallet,
        "nonce": 1,
        "idempotency_key": "i",
        "payload": "",
        "created_at_ms": 1,
    }
    entry = json_entry(
        order_id=1, events=[event], balance_updates=[{**update, "balance_after": "1"}]
    )
    later = {
        **entry,
        "order_id": 2,
        "events": [{**event, "event_topic": "ignored"}],
        "balance_updates": [{**update, "balance_after": "2"}],
        "fill_side_effects": [fill],
        "outbox_appends": [append],
        "cash_withdrawal_side_effect": {
            "wallet": "0x" + "08" * 20,
            "request_id": "w",
            "amount": "1",
            "balance_after": "2",
            "timestamp_ms": 1,
        },
    }
    service = make_service(DEDUP_WINDOW=10).start()
    with service.client() as client:
        first = accepted(post(client, entry))["first_command_id"]
        for _ in range(4):
            accepted(post(client, *(json_entry() for _ in range(5))))
        second = accepted(post(client, later))
        assert second["duplicates"] == []
        assert second["first_command_id"] > first
        flush(client)
        found = client.get(f"/entries/{entry['request_uuid']}").json()
        assert found["status"] == "replicated"
    uuid = UUID(entry["request_uuid"])
    commands = "SELECT command_id, order_id FROM engine_commands WHERE request_uuid = $1"
    assert query(database_url, commands, uuid) == [(first, 1)]
    assert query(database_url, "SELECT event_topic FROM engine_events") == [("kept",)]
    balances = "SELECT command_id, balance_after::int FROM account_balances"
    assert query(database_url, balances) == [(first, 1)]
    updates = "SELECT command_id, balance_after::int FROM balance_updates"
    assert query(database_url, updates) == [(first, 1)]
    for table in ("fill_side_effects", "directive_outbox", "cash_withdrawals"):
        assert query(database_url, f"SELECT command_id FROM {table}") == []


def test_the_window_holds_after_a_restart(make_service: MakeService) -> None:
    service = make_service(DEDUP_WINDOW=10, WAL_SEGMENT_BYTES=64 * 1024).start()
    with service.client() as client:
        old = [json_entry(command_data="AYAA" * 1000) for _ in range(100)]
        for entry in old:
            accepted(post(client, entry))
        flush(client)
    service.terminate()
    service.start()
    with service.client() as client:
        answer = accepted(post(client, *old[-10:]))
        assert len(listed(answer)) == 10
        assert answer["first_command_id"] is None
