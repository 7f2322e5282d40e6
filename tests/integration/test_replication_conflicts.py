"""Other transactions and other servers get in replication's way: it tries again, and loses nothing.

Everything is real: a competing transaction of the test's own, and what Postgres makes of it.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from tests.support.database import end_connections, query, value
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
from tests.support.postgres_cluster import Cluster, database_name
from tests.support.replication_sink import until_blocked
from tests.support.service import Service
from tests.support.waiting import wait_for

WALLET = "0x" + "07" * 20
ERRORS = "ht_journal_replication_errors_total"


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    url = cluster.create_migrated()
    yield url
    cluster.drop(url)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("conflicts") / "data", url) as service:
        yield service.start()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """Replication works, and the wallet has a balance."""
    with service.client() as client:
        accepted(post(client, update()))
        flush(client)
        yield client


def update() -> dict[str, Any]:
    """An entry that changes the balance of the one wallet."""
    change = {
        "balance_update_seq": 0,
        "wallet": WALLET,
        "delta": "1",
        "balance_after": "1",
        "reason": "Fee",
        "timestamp_ms": 5,
    }
    return json_entry(balance_updates=[change])


@contextmanager
def altered(cluster: Cluster, url: str, name: str, setting: str) -> Iterator[None]:
    """Replication's connection is ended, and every one made from now on has the setting."""
    alter = f'ALTER DATABASE "{database_name(url)}" '
    query(cluster.url, f"{alter} SET {name} = '{setting}'")
    end_connections(cluster, url)
    try:
        yield
    finally:
        query(cluster.url, f"{alter} RESET {name}")


@asynccontextmanager
async def in_the_way(client: httpx.Client, url: str, statement: str) -> AsyncIterator[Any]:
    """Have `statement` done in an open transaction, on which replication then waits."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("BEGIN")
        await connection.execute(statement)
        accepted(post(client, update()))
        await until_blocked(connection)
        yield connection
    finally:
        await connection.close()


def assert_tried_again(service: Service, client: httpx.Client, url: str, error: str) -> None:
    """It failed with `error`, said so, tried again, and everything is there once."""
    wait_for(lambda: error in service.log, error)
    newest = flush(client)["last_command_id"]
    assert checkpoint(client)["dead_letters"] == 0
    assert decoded(client.get("/readyz"))["parts"]["replication"] == {"state": "streaming"}
    ids = query(url, "SELECT command_id FROM balance_updates ORDER BY 1")
    assert ids == [(command_id,) for command_id in range(1, newest + 1)]
    assert value(url, "SELECT command_id FROM account_balances") == newest
    assert "Traceback" not in service.log


def streaming(client: httpx.Client) -> None:
    wait_for(lambda: checkpoint(client)["replication"] == "streaming", "it streams again")


def test_a_deadlock_is_tried_again(
    service: Service, client: httpx.Client, cluster: Cluster, url: str
) -> None:
    async def collide() -> None:
        balances = "SELECT FROM account_balances FOR UPDATE"
        async with in_the_way(client, url, balances) as competitor:
            await competitor.execute("SET LOCAL deadlock_timeout = '10min'")
            # Replication holds this row, and waits for the other.
            await competitor.execute("UPDATE replication_progress SET updated_at = now()")
            await competitor.execute("ROLLBACK")

    errors = metric(client, ERRORS)
    # Who waits first looks for a deadlock first, and is its victim: late enough for the other.
    with altered(cluster, url, "deadlock_timeout", "2s"):
        wait_for(lambda: metric(client, ERRORS) > errors, "the loss is noticed")
        streaming(client)
        errors = metric(client, ERRORS)
        asyncio.run(collide())
        assert_tried_again(service, client, url, "DeadlockDetectedError")
    assert metric(client, ERRORS) > errors


def test_a_serialization_failure_is_tried_again(
    service: Service, client: httpx.Client, cluster: Cluster, url: str
) -> None:
    async def collide() -> None:
        touch = "UPDATE account_balances SET timestamp_ms = 6"
        async with in_the_way(client, url, touch) as competitor:
            await competitor.execute("COMMIT")

    errors = metric(client, ERRORS)
    with altered(cluster, url, "default_transaction_isolation", "serializable"):
        wait_for(lambda: metric(client, ERRORS) > errors, "the loss is noticed")
        streaming(client)
        errors = metric(client, ERRORS)
        asyncio.run(collide())
        assert_tried_again(service, client, url, "SerializationError")
    assert metric(client, ERRORS) > errors


def test_a_failover_to_a_server_that_only_reads_is_waited_out(
    service: Service, client: httpx.Client, cluster: Cluster, url: str
) -> None:
    """As when the old primary is gone and its standby has not been promoted yet."""
    with altered(cluster, url, "default_transaction_read_only", "on"):
        accepted(post(client, update()))
        wait_for(lambda: "read-only transaction" in service.log, "it is turned away")
        assert checkpoint(client)["replication"] == "down"
        assert client.get("/readyz").status_code == 200
        refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
    assert_tried_again(service, client, url, "ReadOnlySQLTransactionError")
