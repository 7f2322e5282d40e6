"""A running service for all tests that change nothing but the journal, and a sink for each test."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import httpx
import pytest

from app.replication.postgres import Sink
from tests.support.block_chain import BlockChain
from tests.support.postgres_cluster import Cluster
from tests.support.replication_sink import ENVIRONMENT
from tests.support.service import Service


class MakeService(Protocol):
    """Makes a service on the test's own directory and database; it is not started yet."""

    def __call__(
        self, database_url: str | None = None, /, *, name: str = "data", **settings: object
    ) -> Service: ...


@pytest.fixture(scope="session")
def shared_database_url(cluster: Cluster) -> Iterator[str]:
    url = cluster.create_migrated()
    yield url
    cluster.drop(url)


@pytest.fixture(scope="session")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[Service]:
    """A running service with small request limits, so that going past them is cheap."""
    with Service(
        tmp_path_factory.mktemp("shared") / "data",
        shared_database_url,
        MAX_ENTRIES=200,
        ALLOW_NEW_WAL="true",
    ) as service:
        yield service.start()


@pytest.fixture(scope="session")
def client(shared_service: Service) -> Iterator[httpx.Client]:
    """A client of the shared service, over HTTP/1.1."""
    with shared_service.client() as client:
        yield client


@pytest.fixture
def make_service(tmp_path: Path, database_url: str) -> Iterator[MakeService]:
    """Whatever is still running at the end is killed."""
    with ExitStack() as running:

        def make(url: str | None = None, /, *, name: str = "data", **settings: object) -> Service:
            service = Service(tmp_path / name, url or database_url, **settings)
            return running.enter_context(service)

        yield make


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[Sink]:
    """Replicates into the test's own database."""
    connected = await Sink.connect(database_url, ENVIRONMENT)
    yield connected
    await connected.close()


@pytest.fixture
async def observer(database_url: str) -> AsyncIterator[Any]:
    """A further connection to the test's own database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def chain() -> BlockChain:
    return BlockChain()
