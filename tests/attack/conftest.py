"""A service under attack. Postgres is away all the time: nothing here needs it."""

from collections.abc import Iterator
from typing import Final

import pytest

from tests.support.service import Service

NO_DATABASE: Final = "postgresql://127.0.0.1:9/none"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """It accepts no more than 256 connections, so that using them up is cheap."""
    folder = tmp_path_factory.mktemp("attacked")
    with Service(
        folder / "data", NO_DATABASE, ALLOW_NEW_WAL="true", CHANNEL_CAPACITY=256
    ) as service:
        yield service.start()
        assert "Traceback" not in service.log
