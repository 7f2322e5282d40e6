"""Fixtures that any test may ask for."""

import os
import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.postgres_cluster import Cluster, running_cluster

_RECURSION_LIMIT: Final = sys.getrecursionlimit()
_USUAL_UMASK: Final = 0o022


@pytest.fixture(autouse=True)
def recursion_limit() -> None:
    """Undo what libraries that only tests import do to the limit, as `app.keystore` does."""
    sys.setrecursionlimit(_RECURSION_LIMIT)


@pytest.fixture(autouse=True)
def umask() -> None:
    """Undo what `journal` does to the umask, where a test runs it in this process."""
    os.umask(_USUAL_UMASK)


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
