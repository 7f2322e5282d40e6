"""A running writer for any test of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faulty_files import WatchedFiles
from tests.support.running_writer import Running
from tests.support.wal_files import make_settings


@pytest.fixture
def files() -> WatchedFiles:
    return WatchedFiles()


@pytest.fixture
def running(tmp_path: Path, files: WatchedFiles) -> Iterator[Running]:
    made = Running(make_settings(tmp_path, allow_new_wal=True), files)
    yield made
    files.fault = lambda call: None
    made.writer.close()
