"""A long unreplicated tail is recovered in bounded memory (protocol, section 5)."""

import os
from pathlib import Path
from uuid import UUID

import pytest

from app.model.codec import canonical_bytes
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.log import Log, create_segment
from app.wal.record import Genesis, RawBatch, encode_record, raw_commands
from app.wal.sync import FdatasyncSyncer
from tests.support.journal_entries import make_entry, make_event
from tests.support.recovery_memory import peak_bytes

MIB = 1 << 20
EXTRA_BYTES = 100 * MIB
BATCH = 500
# 1 GiB as well where `TEST_LARGE` is set.
SIZES_MIB = [256, 1024] if os.environ.get("TEST_LARGE") else [256]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_recovering_a_long_unreplicated_tail_takes_less_than_100_mib(
    tmp_path: Path, size_mib: int
) -> None:
    write_log(tmp_path / "empty", 0)
    written = write_log(tmp_path / "long", size_mib * MIB)
    least, none = peak_bytes(tmp_path / "empty")
    most, entries = peak_bytes(tmp_path / "long")
    assert (none, entries) == (0, written)
    extra = f"{(most - least) / MIB:.1f} MiB more than an empty log"
    assert most - least < EXTRA_BYTES, extra


def write_log(data_dir: Path, size: int) -> int:
    """Write a log of about `size` bytes, as the service would; returns how many entries it has."""
    settings = Settings(data_dir=data_dir)
    files = FileSystem()
    files.make_directory(settings.wal_dir)
    genesis = Genesis(
        offset=0, wal_id="w", environment=settings.environment, created_ms=0, first_command_id=1
    )
    log = Log(
        files,
        FdatasyncSyncer(files),
        wal_id=genesis.wal_id,
        environment=genesis.environment,
        segment_bytes=settings.wal_segment_bytes,
        now_ms=lambda: 0,
        segment=create_segment(files, settings.wal_dir, genesis),
    )
    first = 1
    while log.end < size:
        bodies = [body(number) for number in range(first, first + BATCH)]
        offset = log.reserve(sum(map(len, bodies)), first)
        record = RawBatch(offset=offset, first_command_id=first, commands=raw_commands(bodies))
        log.append(encode_record(record))
        first += BATCH
    log.sync()
    log.close()
    return first - 1


_PLACE = UUID(int=0x5A << 120 | 0xA5)
# About 900 bytes, as measured of real requests.
_TEMPLATE = canonical_bytes(
    make_entry(
        request_uuid=_PLACE,
        command_type="CreateOrder",
        command_data=b"\x01" + bytes(range(256)),
        response_data=bytes(250),
        events=[make_event("order-updates", event_data=bytes(200), event_key="key")],
    )
)
_BEFORE, _BEHIND = _TEMPLATE.split(_PLACE.bytes)


def body(number: int) -> bytes:
    """An entry with a `request_uuid` of its own."""
    return _BEFORE + _scattered(number).to_bytes(16) + _BEHIND


def _scattered(number: int) -> int:
    return number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128
