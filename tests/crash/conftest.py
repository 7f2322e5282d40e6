"""What every crash test needs: a seed that can be given again, and the feed."""

import os
from random import Random

import pytest

from tests.support.feed_audit import Feed, find_feed


@pytest.fixture
def rng() -> Random:
    """Chance that can be repeated: the run's header shows the seed, and `CRASH_SEED` gives it."""
    seed = int(os.environ["CRASH_SEED"])
    print(f"CRASH_SEED={seed}")  # noqa: T201 - a failure shows it again
    return Random(seed)


@pytest.fixture(scope="session")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Feed:
    return find_feed(tmp_path_factory.mktemp("feed"))
