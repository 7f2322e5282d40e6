"""An older backup in place of a database with blocks gets what it lacks from the log, once."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("coincurve", reason="signatures need coincurve, which has no wheel here")

from app.replication.schema import metadata
from tests.integration.conftest import MakeService
from tests.support.database import outage, query, value
from tests.support.http_entries import accepted, flush, json_entry, post
from tests.support.postgres_cluster import Cluster, database_name
from tests.support.table_audit import progress_of
from tests.support.verification import assert_verified_in_all_ways, write_cold_key
from tests.support.waiting import wait_for


def entry(**fields: Any) -> dict[str, Any]:
    events = [{"event_topic": "ticks", "event_data": "AQI=", "event_type": "Tick"}]
    return json_entry(**{"command_type": "NewOrder", "events": events} | fields)


def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, save for when it was last changed."""
    found = {}
    for table in metadata.sorted_tables:
        columns = ", ".join(each.name for each in table.columns if each.name != "updated_at")
        found[table.name] = query(url, f"SELECT {columns} FROM {table.name} ORDER BY 1, 2, 3")
    return found


def back_up(cluster: Cluster, url: str) -> str:
    """A copy of the database as it is; nobody else is connected meanwhile. Its name."""
    with outage(cluster, url):
        return database_name(cluster.create(database_name(url)))


def restore(cluster: Cluster, url: str, backup: str) -> None:
    """Put the backup in the place of the database, as an operator does."""
    name = database_name(url)
    with outage(cluster, url):
        query(cluster.url, f'DROP DATABASE "{name}"')
        query(cluster.url, f'ALTER DATABASE "{backup}" RENAME TO "{name}"')


@pytest.mark.parametrize("while_running", [True, False])
def test_blocks_and_all_below_them_that_an_older_backup_lacks_are_filled_from_the_log_once(
    make_service: MakeService,
    cluster: Cluster,
    database_url: str,
    tmp_path: Path,
    while_running: bool,
) -> None:
    service = make_service(
        BLOCK_COMMANDS="*",
        COLD_KEY_FILE=write_cold_key(tmp_path),
        # One is repeated, and what is behind the backup stays in the log.
        DEDUP_WINDOW=1,
        WAL_RETAIN_BYTES=1 << 30,
    ).start()
    repeated = entry()
    with service.client() as client:
        accepted(post(client, repeated))
        for _ in range(3):
            accepted(post(client, entry(), entry()))
        older = flush(client)
    backup = back_up(cluster, database_url)
    # With another key, and so with another delegation.
    service.terminate()
    service.start()
    with service.client() as client:
        for _ in range(3):
            accepted(post(client, entry(), entry(command_type=None), entry()))
        accepted(post(client, repeated, entry()))
        newer = flush(client)
    before = contents(database_url)
    assert len(before["signing_authorities"]) == 2

    if not while_running:
        service.terminate()
    restore(cluster, database_url, backup)
    if while_running:
        wait_for(lambda: "the checkpoint goes back" in service.log, "the log says so")
    else:
        held = progress_of(database_url)
        assert held is not None
        assert held[1] == older["wal_offset"] < newer["wal_offset"]
        service.start()
        assert "Postgres has gone back" in service.log
    with service.client() as client:
        wait_for(lambda: flush(client) == newer, "it is where it was before")
    assert contents(database_url) == before
    assert value(database_url, "SELECT count(*) FROM rsm_block_commands") == 15
    assert_verified_in_all_ways(service, database_url, 15)
    assert "Traceback" not in service.log
