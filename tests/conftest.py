"""Fixtures that any test may ask for."""

from collections.abc import Iterator

import pytest

from tests.support.postgres_cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server, for the whole session."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def empty_database_url(cluster: Cluster) -> Iterator[str]:
    """A database of the test's own, without a schema."""
    url = cluster.create()
    yield url
    cluster.drop(url)


@pytest.fixture
def database_url(cluster: Cluster) -> Iterator[str]:
    """A database of the test's own, at the head revision."""
    url = cluster.create_migrated()
    yield url
    cluster.drop(url)
