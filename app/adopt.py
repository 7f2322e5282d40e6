"""`journal adopt`: begin a log behind what Postgres holds, for an environment whose disk is lost.

Order: the progress row first names the new log, then the commitment store is rebuilt behind what
Postgres holds, then the log's first segment is created. A crash in between leaves an empty
directory and a used environment, where a start is refused and adopting again goes on.
"""

import asyncio
import time

from app.errors import StartRefused
from app.rebuild import fill_store
from app.replication import migrations
from app.replication.postgres import Sink
from app.replication.reader import Reader
from app.service.opening import begin_log, claim_data_dir, new_wal_id
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.segments import list_segments


def run(settings: Settings, database_url: str) -> str:
    """Adopt the environment; returns a line that says what was done.

    Raises `StartRefused` when there is a log already, or nothing to go on behind, and
    `DatabaseUnavailable`.
    """
    files = FileSystem()
    lock = claim_data_dir(files, settings)
    try:
        if list_segments(files, settings.wal_dir):
            raise StartRefused(f"{settings.wal_dir} holds a log already: there is nothing to adopt")
        if files.exists(settings.checkpoint_path):
            raise StartRefused(
                f"{settings.checkpoint_path} is of a log that is not in {settings.wal_dir}; "
                "restore the segments, or move the file away if they are lost"
            )
        return asyncio.run(_adopt(files, settings, database_url))
    finally:
        files.close(lock)


async def _adopt(files: FileSystem, settings: Settings, database_url: str) -> str:
    async with Reader(database_url, settings.environment) as reader:
        held = await reader.environment_summary()
    if not held.used:
        raise StartRefused(
            f"Postgres holds nothing of environment {settings.environment!r}: "
            "`journal serve` begins a log"
        )
    if settings.migrates_at_start:
        await asyncio.to_thread(migrations.upgrade, database_url)
    sink = await Sink.connect(database_url, settings.environment)
    wal_id = new_wal_id()
    try:
        progress = await sink.adopt(wal_id)
        height = await fill_store(files, settings, database_url, wal_id, 0, lambda _: None)
        first = progress.last_command_id + 1
        await asyncio.to_thread(begin_log, files, settings, wal_id, first, _now_ms)
    finally:
        await sink.close()
    return (
        f"began the log {wal_id} of environment {settings.environment!r} behind command_id "
        f"{progress.last_command_id}; the next entry gets {first}; {height} blocks were rebuilt"
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
