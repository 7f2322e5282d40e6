"""A service of blocks for each test."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.block_service import BlockService, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BlockService]:
    running = BlockService(tmp_path / "data")
    yield running
    await running.close()


@pytest.fixture
async def client(service: BlockService) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(service) as client:
        yield client
