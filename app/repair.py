"""`journal wal repair`: cut a tail that `strict` refuses to cut by itself, and nothing else."""

import asyncio
from collections.abc import Callable

from app.errors import StartRefused
from app.replication.reader import EnvironmentSummary, Reader
from app.service.opening import ask_postgres, examine, lock_wal, open_store
from app.service.ownership import check_ownership
from app.settings import Settings, WalTail
from app.wal.checkpoint import read_checkpoint
from app.wal.files import FileSystem
from app.wal.recovery import Verdict, corruption, cut_tail, judge
from app.wal.scan import Evidence, Scan
from app.wal.segments import list_segments
from app.wal.sync import FdatasyncSyncer


def run(
    settings: Settings,
    database_url: str,
    confirm: Callable[[str, bool], None],
    files: FileSystem | None = None,
) -> str:
    """Look at the log and cut its tail, if it is one; returns a line that says what was done.

    `confirm` is given the evidence and what would be cut, and whether Postgres could be asked; it
    raises to stop it. Raises `CorruptionError` for anything that is not a tail, `StartRefused`
    where there is no log, or one that others may read or write, and `WalLocked` while a service
    runs on it; log and checkpoint are not changed then. The commitment store holds the same after
    it, though to open it changes its files. After a crash in the middle it may be run again.
    """
    files = files or FileSystem()
    check_ownership(settings)
    if not files.exists(settings.wal_dir):
        raise StartRefused(f"{settings.wal_dir} does not exist: there is nothing to repair")
    lock = lock_wal(files, settings)
    try:
        if not list_segments(files, settings.wal_dir):
            raise StartRefused(f"{settings.wal_dir} holds no segment: there is nothing to repair")
        held = asyncio.run(_ask(database_url, settings.environment))
        checkpoint = read_checkpoint(files, settings.checkpoint_path)
        store = open_store(settings) if files.exists(settings.commitments_dir) else None
        try:
            scan, evidence, _ = examine(files, settings, checkpoint, held, store)
        finally:
            if store is not None:
                store.close()
        verdict = judge(scan.fault, scan.end, evidence.offset, scan.valid_behind, WalTail.TOLERANT)
        if verdict is Verdict.CORRUPT:
            raise corruption(scan, evidence)
        if verdict is Verdict.CLEAN:
            return f"the log ends cleanly at offset {scan.end}: there is nothing to repair"
        was_asked = held is not None
        confirm(_describe(scan, evidence, was_asked=was_asked), was_asked)
        aside = cut_tail(files, scan, FdatasyncSyncer(files))
        return f"cut at offset {scan.end} and synced; what was cut is in {aside}"
    finally:
        files.close(lock)


async def _ask(database_url: str, environment: str) -> EnvironmentSummary | None:
    async with Reader(database_url, environment) as reader:
        return await ask_postgres(reader)


def _describe(scan: Scan, evidence: Evidence, *, was_asked: bool) -> str:
    last = scan.segments[-1]
    reason = scan.fault.reason if scan.fault else "no fault"
    unasked = "" if was_asked else " Postgres, which might know of more, could not be asked."
    return (
        f"{last.path}: the log is good up to offset {scan.end}; there {reason}.\n"
        f"The highest offset that is known to have been durable is {evidence.offset} "
        f"({evidence.source}), and no valid record follows the fault.{unasked}\n"
        f"{last.end - scan.end} bytes would be copied aside and cut off."
    )
