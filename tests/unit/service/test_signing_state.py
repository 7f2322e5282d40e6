"""What `/readyz` says of signing where there is no cold key: nothing is missed, or something is."""

from pathlib import Path

import pytest

from app.service.blocks import BlockProducer
from tests.support.block_service import BlockService
from tests.support.journal_entries import make_entry


async def signing_without_a_key(data_dir: Path, *, was_signed: bool) -> str:
    """The state of a producer without a key, behind a chain whose newest block is signed or not."""
    service = BlockService(data_dir)
    if was_signed:
        service.sign()
    await service.commit(make_entry(command_type="TickSnapshot"))
    store = service.store
    without_key = BlockProducer(store, frozenset(), None, "log", store.wal_offset, lambda: store)
    await service.close()
    return without_key.signing


async def test_a_chain_that_never_had_a_key_misses_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await signing_without_a_key(tmp_path, was_signed=False) == "off"
    assert caplog.messages == []


async def test_a_chain_that_was_signed_is_degraded_without_its_key_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await signing_without_a_key(tmp_path, was_signed=True) == "degraded"
    assert any("COLD_KEY_FILE is missing" in message for message in caplog.messages)
