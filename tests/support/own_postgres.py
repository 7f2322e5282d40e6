"""A PostgreSQL of the test's own, which it can crash and start again."""

import os
import shutil
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from app.embedded import EmbeddedPostgres
from tests.support.database import query, value
from tests.support.ends import await_ends
from tests.support.waiting import wait_for

_PASSWORDS: Final = "local all postgres trust\nlocal all all scram-sha-256\n"


class OwnPostgres:
    """A server from the embedded wheel; `url` stays the same from start to start."""

    def __init__(self) -> None:
        # Not below pytest's own directory: the path of a Unix socket is limited to about 100 bytes.
        self._parent = Path(tempfile.mkdtemp(prefix="journal-own-postgres-"))
        self._directory = self._parent / "postgres"
        self._server = EmbeddedPostgres(self._directory)
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()
        shutil.rmtree(self._parent, ignore_errors=True)

    def start(self) -> None:
        """Start the server; it recovers first if it was crashed."""
        url = self._server.start()
        assert self.url in ("", url)
        self.url = url

    def ask_for_passwords(self) -> None:
        """From now on everybody has to show one, save the superuser of `url`."""
        loaded = value(self.url, "SELECT pg_conf_load_time()")
        (self._directory / "pg_hba.conf").write_text(_PASSWORDS)
        query(self.url, "SELECT pg_reload_conf()")
        wait_for(
            lambda: value(self.url, "SELECT pg_conf_load_time() > $1", loaded), "it is in force"
        )

    def crash(self) -> None:
        """What `pg_ctl stop -m immediate` does: every backend ends at once, nothing is finished."""
        pid = int((self._directory / "postmaster.pid").read_text().split("\n", 1)[0])
        postmaster = psutil.Process(pid)
        os.kill(pid, signal.SIGQUIT)
        await_ends([postmaster])
        self._server.stop()
