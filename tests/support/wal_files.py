"""Data directories with a WAL in them: written by hand, damaged, and read back independently.

`write_wal` lays records out as asked; `read_commands` reads a WAL without the service's own reader.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import crcmod.predefined
from msgspec import Raw

from app.model.codec import canonical_bytes
from app.model.entry import Entry
from app.replication.reader import EnvironmentSummary
from app.replication.rows import Progress
from app.service.opening import OpenedLog, lock_wal, open_log
from app.settings import Settings
from app.wal.checkpoint import Checkpoint, write_checkpoint
from app.wal.files import FileSystem
from app.wal.record import Genesis, RawBatch, encode_record
from app.wal.segments import segment_name
from app.wal.sync import FdatasyncSyncer
from tests.support.foreign_wal import read_wal
from tests.support.journal_entries import make_entry

WAL_ID: Final = "a" * 32
ENVIRONMENT: Final = "test"

crc_32c = crcmod.predefined.mkPredefinedCrcFun("crc-32c")


@dataclass(frozen=True)
class Record:
    """One record of a WAL: the file it is in, its logical offset, where in the file, its bytes."""

    path: Path
    offset: int
    at: int
    data: bytes
    entries: list[Entry] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


@dataclass(frozen=True)
class WrittenWal:
    """A WAL on disk, as it was before any damage. `records` leaves the genesis records out."""

    settings: Settings
    records: list[Record]
    genesis: list[Record]

    @property
    def end(self) -> int:
        return max(record.end for record in [*self.records, *self.genesis])

    @property
    def uuids(self) -> list[UUID]:
        return [entry.request_uuid for record in self.records for entry in record.entries]

    def damage(self, offset: int, data: bytes) -> None:
        """Overwrite bytes from a logical offset on."""
        segment = [genesis for genesis in self.genesis if genesis.offset <= offset][-1]
        patch(segment.path, offset - segment.offset, data)

    def byte_at(self, offset: int) -> int:
        segment = [genesis for genesis in self.genesis if genesis.offset <= offset][-1]
        return segment.path.read_bytes()[offset - segment.offset]

    def flip(self, offset: int, mask: int = 1) -> None:
        """Flip bits of the byte at a logical offset."""
        self.damage(offset, bytes([self.byte_at(offset) ^ mask]))

    def cut(self, offset: int) -> None:
        """Let the log end at a logical offset of the last segment."""
        truncate(self.genesis[-1].path, offset - self.genesis[-1].offset)

    def checkpoint(self, offset: int, **fields: Any) -> Checkpoint:
        """Write a checkpoint that says that everything up to `offset` was replicated."""
        ids = [len(record.entries) for record in self.records if record.end <= offset]
        checkpoint = Checkpoint(
            **{
                "wal_id": WAL_ID,
                "environment": ENVIRONMENT,
                "wal_offset": offset,
                "last_command_id": sum(ids),
                **fields,
            }
        )
        write_checkpoint(FileSystem(), self.settings.checkpoint_path, checkpoint)
        return checkpoint


def make_settings(data_dir: Path, **fields: Any) -> Settings:
    """Settings of a service on `data_dir`, which is created with its WAL directory."""
    settings = Settings(data_dir=data_dir, **{"environment": ENVIRONMENT, **fields})
    files = FileSystem()
    files.close(lock_wal(files, settings))
    return settings


def make_genesis(offset: int, first_command_id: int, **fields: Any) -> Genesis:
    return Genesis(
        **{
            "offset": offset,
            "wal_id": WAL_ID,
            "environment": ENVIRONMENT,
            "created_ms": 1_700_000_000_000,
            "first_command_id": first_command_id,
            **fields,
        }
    )


def make_record(offset: int, first_command_id: int, entries: Sequence[Entry]) -> bytes:
    """A framed batch record."""
    commands = [Raw(canonical_bytes(entry)) for entry in entries]
    batch = RawBatch(offset=offset, first_command_id=first_command_id, commands=commands)
    return bytes(encode_record(batch))


def frame(payload: bytes) -> bytes:
    """A payload with its length and CRC, computed independently."""
    return struct.pack("<II", len(payload), crc_32c(payload)) + payload


def write_wal(
    settings: Settings,
    segments: Sequence[Sequence[int | Sequence[Entry]]],
    genesis: Mapping[int, Mapping[str, Any]] | None = None,
) -> WrittenWal:
    """Write a WAL: a sequence of segments of records, each the number of its entries or themselves.

    `genesis` changes fields of the genesis of the segments of these indices.
    """
    written = WrittenWal(settings, [], [])
    offset, command_id = 0, 1
    for index, records in enumerate(segments):
        path = settings.wal_dir / segment_name(offset)
        start = offset
        first = make_genesis(start, command_id, **(genesis or {}).get(index, {}))
        data = bytes(encode_record(first))
        written.genesis.append(Record(path, start, 0, data))
        offset += len(data)
        for content in records:
            entries = numbered(content) if isinstance(content, int) else list(content)
            record = make_record(offset, command_id, entries)
            written.records.append(Record(path, offset, offset - start, record, entries))
            data += record
            offset, command_id = offset + len(record), command_id + len(entries)
        path.write_bytes(data)
    return written


def numbered(count: int) -> list[Entry]:
    """Small entries that differ in more than their `request_uuid`."""
    return [make_entry(order_id=number) for number in range(count)]


def open_wal(
    settings: Settings,
    progress: Progress | None = None,
    *,
    reachable: bool = True,
    files: FileSystem | None = None,
) -> OpenedLog:
    """Open the WAL as the service does. `progress` is Postgres' row; it may be out of reach too."""
    files = files or FileSystem()
    held = EnvironmentSummary(progress=progress) if reachable else None
    return open_log(files, settings, FdatasyncSyncer(files), held, lambda: 1_700_000_000_000)


def progress_at(offset: int, last_command_id: int = 0, wal_id: str = WAL_ID) -> Progress:
    return Progress(wal_id=wal_id, wal_offset=offset, last_command_id=last_command_id)


def read_commands(wal_dir: Path) -> dict[int, UUID]:
    """`command_id` to `request_uuid` of every command, read independently; fails on any fault."""
    found = {}
    for record in read_wal(wal_dir):
        for position, command in enumerate(record.content.get("commands", [])):
            command_id = record.content["first_command_id"] + position
            assert command_id not in found
            found[command_id] = UUID(bytes=command["request_uuid"])
    return found


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory and what is in it."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def patch(path: Path, at: int, data: bytes) -> None:
    """Overwrite bytes of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def truncate(path: Path, size: int) -> None:
    """Cut a file."""
    with path.open("r+b") as file:
        file.truncate(size)
