"""`uvicorn app.main:app`: another server over HTTP/1.1, the same promise."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.database import value
from tests.support.file_modes import assert_owners_alone
from tests.support.http_entries import (
    accepted,
    flush,
    json_entry,
    msgpack_entry,
    post,
    post_msgpack,
    refused,
)
from tests.support.waiting import wait_for

MIB = 1 << 20


class Uvicorn:
    """`uvicorn app.main:app` on a data directory."""

    def __init__(self, data_dir: Path, database_url: str) -> None:
        environ = {
            name: text for name, text in os.environ.items() if not name.startswith("JOURNAL_")
        }
        self._environ = environ | {
            "JOURNAL_DATA_DIR": str(data_dir),
            "JOURNAL_DATABASE_URL": database_url,
        }
        self._log = data_dir.with_name("uvicorn.log")
        self.start()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", "0"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)
        port = wait_for(self._port, "it listens")
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
        wait_for(lambda: self.client.get("/readyz").status_code == 200, "it is ready")

    def stop(self) -> int:
        """SIGTERM; the exit status: uvicorn ends by the signal itself, once it has shut down."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(30)

    def _port(self) -> int:
        assert self.process.poll() is None, self.log
        for connection in psutil.Process(self.process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        return 0


@pytest.fixture
def uvicorn(tmp_path: Path, database_url: str) -> Iterator[Uvicorn]:
    server = Uvicorn(tmp_path / "data", database_url)
    yield server
    if server.process.poll() is None:
        server.kill()


def test_entries_survive_a_crash_and_a_stop_replicates_them(
    uvicorn: Uvicorn, database_url: str
) -> None:
    entries = [json_entry() for _ in range(50)]
    first = accepted(post(uvicorn.client, *entries))
    assert first["last_command_id"] == 50
    uvicorn.kill()
    uvicorn.start()
    assert len(accepted(post(uvicorn.client, *entries))["duplicates"]) == 50
    large = [msgpack_entry(command_data=b"\x01" * MIB) for _ in range(15)]
    assert accepted(post_msgpack(uvicorn.client, *large))["first_command_id"] == 51
    refused(post(uvicorn.client, {}), 42201)
    refused(
        uvicorn.client.post(
            "/entries", content=bytes(16 * MIB + 1), headers={"content-type": "application/json"}
        ),
        41301,
    )
    head = uvicorn.client.head("/checkpoint")
    assert (head.status_code, head.content) == (200, b"")
    assert flush(uvicorn.client)["last_command_id"] == 65
    accepted(post(uvicorn.client, json_entry()))
    assert uvicorn.stop() == -signal.SIGTERM
    assert value(database_url, "SELECT count(*) FROM engine_commands") == 66


def test_a_bad_setting_stops_the_start_with_a_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uvicorn", "app.main:app"],
        env={**os.environ, "JOURNAL_MAX_ENTRIES": "none", "JOURNAL_DATA_DIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "JOURNAL_MAX_ENTRIES='none'" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_it_makes_is_for_the_owner_alone(uvicorn: Uvicorn, tmp_path: Path) -> None:
    """The commitment store's library knows of no mode but the umask, and this server sets none."""
    accepted(post(uvicorn.client, json_entry()))
    flush(uvicorn.client)
    assert list((tmp_path / "data" / "commitments").glob("*.log"))
    assert_owners_alone(tmp_path / "data")
