"""One PostgreSQL for a test session, and databases in it that cost a file copy each.

Taken in this order: the server of `TEST_DATABASE_URL` (a role that may create databases), a
container where a Docker engine answers, the embedded wheel.
"""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from app.embedded import EmbeddedPostgres
from app.replication import migrations

IMAGE = "postgres:18-alpine"
IN_MEMORY = Path("/dev/shm")
# What both clusters of a run may take, and much to spare.
ENOUGH_BYTES = 4 << 30
DOCKER_SOCKET = "/var/run/docker.sock"


class Cluster:
    """Makes and drops databases on the server at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._template: str | None = None

    def create(self, template: str = "template0") -> str:
        """Make a database and return its URL."""
        name = f"journal_test_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"/{name}"))

    def create_migrated(self) -> str:
        """Make a database at the head revision and return its URL."""
        if self._template is None:
            template_url = self.create()
            in_thread(asyncio.to_thread(migrations.upgrade, template_url))
            self._template = database_name(template_url)
        return self.create(self._template)

    def drop(self, url: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{database_name(url)}" WITH (FORCE)')

    def close(self) -> None:
        if self._template is not None:
            self._execute(f'DROP DATABASE IF EXISTS "{self._template}" WITH (FORCE)')

    def _execute(self, statement: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(self.url, timeout=10)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        in_thread(run())


def database_name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def in_thread(work: Coroutine[Any, Any, Any]) -> None:
    """Run `work` in a loop of its own, whatever loop the caller is in."""
    with ThreadPoolExecutor(1, "postgres-cluster") as executor:
        executor.submit(asyncio.run, work).result(60)


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """The session's cluster."""
    url = os.environ.get("TEST_DATABASE_URL")
    if url:
        server = _closing(Cluster(url))
    elif _docker_answers():
        server = _container()
    else:
        server = _embedded()
    with server as cluster:
        yield cluster


@contextmanager
def _closing(cluster: Cluster) -> Iterator[Cluster]:
    try:
        yield cluster
    finally:
        cluster.close()


def _docker_answers() -> bool:
    """Asked without the Docker client, which leaves a socket open when nobody answers."""
    if "DOCKER_HOST" in os.environ:
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(5)
        try:
            probe.connect(DOCKER_SOCKET)
            probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b"200 OK" in probe.recv(64)
        except OSError:
            return False


@contextmanager
def _container() -> Iterator[Cluster]:
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415 - likewise

    with PostgresContainer(IMAGE, driver=None) as container:
        yield Cluster(container.get_connection_url())


@contextmanager
def _embedded() -> Iterator[Cluster]:
    # Not below pytest's own directory: the path of a Unix socket is limited to about 100 bytes.
    # And in memory, if there is room: hundreds of files come and go with each test's database.
    has_room = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= ENOUGH_BYTES
    place = IN_MEMORY if has_room else None
    directory = Path(tempfile.mkdtemp(prefix="journal-postgres-", dir=place))
    server = EmbeddedPostgres(directory / "postgres")
    try:
        cluster = Cluster(server.start())
        cluster._execute("ALTER SYSTEM SET fsync = off")  # noqa: SLF001 - the cluster's own constructor
        cluster._execute("SELECT pg_reload_conf()")  # noqa: SLF001
        yield cluster
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
