"""Fixtures that any test may ask for."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from random import SystemRandom
from typing import Final

import pytest

from tests.support.postgres_cluster import Cluster, running_cluster

_RECURSION_LIMIT: Final = sys.getrecursionlimit()
_USUAL_UMASK: Final = 0o022
_CRASH_TESTS: Final = Path(__file__).parent / "crash"


def pytest_configure() -> None:
    """Choose the seed of the crash tests once; xdist's workers have it from the environment."""
    if not os.environ.get("CRASH_SEED"):
        os.environ["CRASH_SEED"] = str(SystemRandom().randrange(2**32))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show the seed, whatever comes of the run, where crash tests may be in it."""
    for argument in config.args:
        path = (config.invocation_params.dir / argument.split("::")[0]).resolve()
        if path.is_relative_to(_CRASH_TESTS) or _CRASH_TESTS.is_relative_to(path):
            return f"CRASH_SEED={os.environ['CRASH_SEED']}"
    return None


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
