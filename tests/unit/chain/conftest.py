"""An empty commitment store for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.chain.store import CommitmentStore
from tests.support.store_blocks import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "commitments"


@pytest.fixture
def store(path: Path) -> Iterator[CommitmentStore]:
    opened = open_store(path)
    yield opened
    opened.close()
