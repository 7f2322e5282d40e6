"""`journal adopt`: going on behind what Postgres holds, once the disk is lost (section 5)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.integration.conftest import MakeService
from tests.support.database import query, value
from tests.support.http_entries import accepted, checkpoint, flush, json_entry, post, refused
from tests.support.preloaded import Preloaded
from tests.support.service import Service

ROOT = Path(__file__).parents[2]
COMMAND = "from app.cli import main; main()"


class Adopt(Protocol):
    """Runs `journal adopt` on the service's directory and database."""

    def __call__(
        self, service: Service, database_url: str, *options: str
    ) -> "subprocess.CompletedProcess[str]": ...


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    with Preloaded(ROOT, "app.cli.operator", "app.adopt") as running:
        yield running


@pytest.fixture
def adopt(preloaded: Preloaded) -> Adopt:
    def run(
        service: Service, database_url: str, *options: str
    ) -> "subprocess.CompletedProcess[str]":
        environ = {k: text for k, text in os.environ.items() if not k.startswith("JOURNAL_")}
        environ["JOURNAL_DATA_DIR"] = str(service.data_dir)
        environ["JOURNAL_DATABASE_URL"] = database_url
        done = preloaded.run(COMMAND, "adopt", *options, stdin=b"", environ=environ)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def test_a_lost_disk_refuses_the_start_until_it_is_adopted_and_command_ids_go_on(
    make_service: MakeService, database_url: str, adopt: Adopt
) -> None:
    service = make_service().start()
    with service.client() as client:
        kept = [json_entry(order_id=number) for number in range(5)]
        accepted(post(client, *kept))
        lost = flush(client)
    assert service.terminate() == 0
    shutil.rmtree(service.data_dir)

    status, log = service.start_refused()
    assert status == 1
    assert "command_id 5" in log
    assert lost["wal_id"] in log
    assert "`journal adopt`" in log
    assert "Traceback" not in log

    done = adopt(service, database_url, "--yes")
    assert done.returncode == 0, done.stderr
    assert "behind command_id 5; the next entry gets 6" in done.stdout

    service.start()
    with service.client() as client:
        found = checkpoint(client)
        assert found["wal_id"] != lost["wal_id"]
        assert found["last_command_id"] == 5
        answer = accepted(post(client, json_entry(), json_entry()))
        assert (answer["first_command_id"], answer["last_command_id"]) == (6, 7)
        assert flush(client)["last_command_id"] == 7
        assert client.get(f"/entries/{kept[0]['request_uuid']}").json() == {
            "request_uuid": kept[0]["request_uuid"],
            "command_id": 1,
            "status": "replicated",
            "block_height": None,
        }
    rows = query(database_url, "SELECT command_id FROM engine_commands ORDER BY 1")
    assert [row[0] for row in rows] == list(range(1, 8))


def test_an_entry_from_before_that_is_sent_again_keeps_its_first_row(
    make_service: MakeService, database_url: str, adopt: Adopt
) -> None:
    """The new log can't know it: it is beyond the window (section 2)."""
    service = make_service().start()
    entry = json_entry(order_id=1)
    with service.client() as client:
        accepted(post(client, entry))
        flush(client)
    service.terminate()
    shutil.rmtree(service.data_dir)
    assert adopt(service, database_url, "--yes").returncode == 0
    service.start()
    with service.client() as client:
        assert accepted(post(client, entry))["first_command_id"] == 2
        flush(client)
    assert query(database_url, "SELECT command_id, order_id FROM engine_commands") == [(1, 1)]


def test_adopting_goes_on_where_a_crash_left_it(
    make_service: MakeService, database_url: str, adopt: Adopt
) -> None:
    """The progress row names the new log before its first segment is there."""
    service = make_service().start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        flush(client)
    service.terminate()
    shutil.rmtree(service.data_dir)
    assert adopt(service, database_url, "--yes").returncode == 0
    for segment in (service.data_dir / "wal").glob("*.wal"):
        segment.unlink()
    assert service.start_refused()[0] == 1
    assert adopt(service, database_url, "--yes").returncode == 0
    service.start()
    with service.client() as client:
        assert accepted(post(client, json_entry()))["first_command_id"] == 2
        flush(client)
    assert value(database_url, "SELECT count(*) FROM engine_commands") == 2


def test_adopting_is_refused_where_there_is_a_log_or_nothing_to_adopt(
    make_service: MakeService, database_url: str, adopt: Adopt
) -> None:
    service = make_service()
    nothing = adopt(service, database_url, "--yes")
    assert nothing.returncode == 1
    assert "holds nothing of environment 'development'" in nothing.stderr
    service.start()
    with service.client() as client:
        accepted(post(client, json_entry()))
        flush(client)
        running = adopt(service, database_url, "--yes")
        assert running.returncode == 1
        assert "in use by another process" in running.stderr
    service.terminate()
    there = adopt(service, database_url, "--yes")
    assert there.returncode == 1
    assert "holds a log already" in there.stderr
    assert "Traceback" not in nothing.stderr + running.stderr + there.stderr


def test_adopting_asks_first(make_service: MakeService, database_url: str, adopt: Adopt) -> None:
    service = make_service()
    done = adopt(service, database_url)
    assert done.returncode != 0
    assert "lost for good" in done.stdout
    assert not (service.data_dir / "wal").exists()


def test_an_empty_directory_without_postgres_needs_allow_new_wal(
    make_service: MakeService,
) -> None:
    nowhere = "postgresql://postgres@127.0.0.1:1/postgres"
    service = make_service(nowhere, SHUTDOWN_TIMEOUT_S=0)
    status, log = service.start_refused()
    assert status == 1
    assert "JOURNAL_ALLOW_NEW_WAL=true" in log
    assert not list((service.data_dir / "wal").glob("*.wal"))
    service.start(ALLOW_NEW_WAL="true")
    with service.client() as client:
        accepted(post(client, json_entry()))
        refused(client.post("/flush", params={"timeout_s": 0.1}), 50401, retriable=True)
