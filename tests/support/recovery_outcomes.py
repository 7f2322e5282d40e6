"""What opening a WAL may come to: recovered, cut, or refused without a byte changed."""

from typing import Any

import pytest

from app.errors import CorruptionError, StartRefused
from app.service.opening import OpenedLog
from app.settings import WalTail
from tests.support.wal_files import Record, WrittenWal, open_wal, read_commands, snapshot


def tolerant(wal: WrittenWal) -> WrittenWal:
    settings = wal.settings.model_copy(update={"wal_tail": WalTail.TOLERANT})
    return WrittenWal(settings, wal.records, wal.genesis)


def opened(wal: WrittenWal, **options: Any) -> OpenedLog:
    """Open the log; the caller only wants to know what was recovered."""
    log = open_wal(wal.settings, **options)
    log.log.close()
    return log


def refusal(wal: WrittenWal, **options: Any) -> CorruptionError:
    """The corruption that a start reports; it must not have changed one byte."""
    before = snapshot(wal.settings.data_dir)
    with pytest.raises(CorruptionError) as caught:
        open_wal(wal.settings, **options)
    assert snapshot(wal.settings.data_dir) == before
    assert caught.value.segment in str(caught.value)
    assert str(caught.value.offset) in str(caught.value)
    assert caught.value.reason in str(caught.value)
    return caught.value


def refused_start(wal: WrittenWal, **options: Any) -> str:
    """Why a start is refused without calling it corruption; not one byte may have changed."""
    before = snapshot(wal.settings.data_dir)
    with pytest.raises(StartRefused) as caught:
        open_wal(wal.settings, **options)
    assert snapshot(wal.settings.data_dir) == before
    return str(caught.value)


def assert_names(error: CorruptionError, record: Record, reason: str) -> None:
    assert error.segment == record.path.name
    assert error.offset == record.offset
    assert reason in error.reason


def assert_cut(wal: WrittenWal, kept: int) -> None:
    """The log holds its first `kept` records, what lay behind is aside, and it goes on."""
    entries = sum(len(record.entries) for record in wal.records[:kept])
    end = wal.records[kept - 1].end
    last = wal.genesis[-1]
    torn = last.path.read_bytes()[end - last.offset :]
    assert torn
    log = open_wal(wal.settings)
    aside = last.path.with_name(f"{last.path.name}.{end}.torn")
    assert aside.read_bytes() == torn
    assert log.log.end == end
    assert log.next_command_id == entries + 1
    assert list(read_commands(wal.settings.wal_dir).values()) == wal.uuids[:entries]
    log.log.close()
    before = snapshot(wal.settings.data_dir)
    again = opened(wal)
    assert again.log.end == end
    assert snapshot(wal.settings.data_dir) == before
