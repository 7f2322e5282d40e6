"""The way to Postgres is gone without a word: no answer, no FIN, no RST, to the running service."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from tests.support.database import value
from tests.support.http_entries import (
    accepted,
    checkpoint,
    decoded,
    flush,
    json_entry,
    metric,
    post,
    refused,
)
from tests.support.postgres_cluster import Cluster
from tests.support.postgres_proxy import proxied
from tests.support.service import Service
from tests.support.table_audit import table_rows
from tests.support.waiting import wait_for

# What the kernel takes to find out (half a minute), and room for a busy machine; a statement may
# take longer than both.
NOTICED_S = 55


def replication(client: httpx.Client) -> dict[str, Any]:
    """What `/readyz` says of it, while entries can be acknowledged."""
    response = client.get("/readyz")
    assert response.status_code == 200, response.text
    part: dict[str, Any] = decoded(response)["parts"]["replication"]
    return part


def test_a_way_to_postgres_that_swallows_everything_is_noticed_and_nothing_is_replicated_twice(
    tmp_path: Path, cluster: Cluster
) -> None:
    """Of an idle connection and in the middle of a statement, at once: both are all waiting."""
    urls = [cluster.create_migrated() for _ in range(2)]
    with ThreadPoolExecutor(thread_name_prefix="black-hole") as executor:
        cases = [
            executor.submit(lose_the_way, tmp_path / name, url, sending=name == "sending")
            for name, url in zip(("idle", "sending"), urls, strict=True)
        ]
    for url in urls:
        cluster.drop(url)
    failures = [error for case in cases if (error := case.exception())]
    if failures:
        raise BaseExceptionGroup("of both cases", failures)


def lose_the_way(directory: Path, database_url: str, *, sending: bool) -> None:
    """To a service of its own, while its connection is idle or in the middle of a statement."""
    directory.mkdir()
    with (
        proxied(database_url, directory, tcp=True) as proxy,
        Service(
            directory / "data", f"{proxy.url}&connect_timeout=1", AUTO_MIGRATE="false"
        ) as service,
    ):
        service.start()
        with service.client() as client:
            entries = [json_entry() for _ in range(60)]
            accepted(post(client, *entries[:20]))
            flush(client)
            proxy.lose_packets()
            if sending:
                accepted(post(client, *entries[20:30]))
            wait_for(lambda: replication(client)["state"] == "down", "it is noticed", NOTICED_S)
            for entry in entries[30 if sending else 20 : 40]:
                accepted(post(client, entry))
            wait_for(lambda: "timed out" in replication(client)["detail"], "it is tried again")
            accepted(post(client, *entries[40:]))
            assert checkpoint(client)["replication"] == "down"
            refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
            assert value(database_url, "SELECT count(*) FROM engine_commands") == 20

            proxy.find_packets()
            assert flush(client)["unreplicated_bytes"] == 0
            wait_for(lambda: replication(client)["state"] == "streaming", "it works again")
            assert metric(client, "ht_journal_rejected_total") == 0
        found = [row[:2] for row in table_rows(database_url, "engine_commands")]
        uuids = [UUID(entry["request_uuid"]) for entry in entries]
        assert found == list(enumerate(uuids, start=1))
        assert "left out" not in service.log, "a record was replicated again"
        assert "Traceback" not in service.log
