"""What the replication process needs of the settings, handed over by the worker.

It could read them as the worker does, but loading what that takes was most of its start.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec
from msgspec import Struct

from app.logs import LogFormat, LogLevel

if TYPE_CHECKING:
    from app.settings import Settings

# In the environment: it holds the password of a database URL, which arguments would show to all.
_VARIABLE: Final = "_JOURNAL_REPLICATION"


class ReplicationSettings(Struct, frozen=True):
    """As in `app.settings`."""

    environment: str
    database_url: str
    migrates_at_start: bool
    data_dir: str
    persist_digests: bool
    replication_batch_size: int
    flush_interval_ms: int
    log_format: LogFormat | None
    log_level: LogLevel

    @classmethod
    def of(cls, settings: "Settings", database_url: str) -> Self:
        """Those of the service, with the URL of the database that it really has."""
        return cls(
            environment=settings.environment,
            database_url=database_url,
            migrates_at_start=settings.migrates_at_start,
            data_dir=str(settings.data_dir.resolve()),
            persist_digests=settings.persist_digests,
            replication_batch_size=settings.replication_batch_size,
            flush_interval_ms=settings.flush_interval_ms,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )

    @classmethod
    def taken_from(cls, environ: Mapping[str, str]) -> Self:
        """Those that were put into the environment of this process."""
        return msgspec.json.decode(environ[_VARIABLE], type=cls)

    def put_into(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process that takes them from there."""
        return {**environ, _VARIABLE: msgspec.json.encode(self).decode()}

    @property
    def wal_dir(self) -> Path:
        """Where the segments are."""
        return Path(self.data_dir, "wal")

    @property
    def checkpoint_path(self) -> Path:
        """The checkpoint file."""
        return Path(self.data_dir, "checkpoint.json")
