"""Opening a data directory: lock it, recover the log or begin one."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import uuid4

from app.chain.store import CommitmentStore
from app.errors import DatabaseUnavailable, StartRefused, WalLocked
from app.replication.reader import EnvironmentSummary, Reader
from app.replication.rows import Progress
from app.service.block_recovery import LogExtent, catch_up
from app.service.ownership import check_ownership
from app.settings import Settings
from app.wal.checkpoint import Checkpoint, read_checkpoint
from app.wal.dedup import DuplicateIndex
from app.wal.files import FileSystem
from app.wal.genesis import read_owner
from app.wal.log import Log, create_segment
from app.wal.record import Genesis
from app.wal.recovery import Recovered, recover
from app.wal.scan import Evidence, Scan, load_index, scan_log
from app.wal.segments import Segment, list_segments, remove_drafts
from app.wal.sync import Syncer

_log = logging.getLogger(__name__)

LOCK_NAME = "lock"


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """A log that is locked, recovered and ready to be written.

    `kept_from` is the offset before which commands have been given back, or were journaled in an
    earlier log; None where the log holds all commands there ever were.
    """

    log: Log
    index: DuplicateIndex
    checkpoint: Checkpoint
    next_command_id: int
    entries_to_replicate: int
    kept_from: int | None = None


def claim_data_dir(files: FileSystem, settings: Settings) -> int:
    """Make sure that the data directory is this user's alone, and lock it as `lock_wal` does.

    Raises `StartRefused` and `WalLocked`.
    """
    check_ownership(settings)
    return lock_wal(files, settings)


def lock_wal(files: FileSystem, settings: Settings) -> int:
    """Create the directories and take the lock; the descriptor holds it. Raises `WalLocked`."""
    files.make_directory(settings.data_dir)
    files.make_directory(settings.wal_dir)
    path = settings.wal_dir / LOCK_NAME
    try:
        return files.lock(path)
    except BlockingIOError:
        raise WalLocked(str(settings.wal_dir)) from None


def open_store(settings: Settings) -> CommitmentStore:
    """Open the commitment store, or create it."""
    return CommitmentStore.open(
        settings.commitments_dir,
        settings.environment,
        prune_window=settings.rsm_prune_window,
        pruning_enabled=settings.rsm_pruning_enabled,
    )


async def ask_postgres(reader: Reader) -> EnvironmentSummary | None:
    """What Postgres holds of the environment; None when it can't be reached."""
    try:
        return await reader.environment_summary()
    except DatabaseUnavailable as error:
        _log.warning("Postgres can't be asked at start: %s", error)
        return None


def new_wal_id() -> str:
    """What no other log is called."""
    return uuid4().hex


def open_log(
    files: FileSystem,
    settings: Settings,
    syncer: Syncer,
    held: EnvironmentSummary | None,
    now_ms: Callable[[], int],
    store: CommitmentStore | None = None,
    new_id: Callable[[], str] = new_wal_id,
) -> OpenedLog:
    """Recover the log, or begin one where there is none. Blocking; `held` is what Postgres said.

    The commitment store is brought up to the end of the log. Raises `CorruptionError` and
    `StartRefused`; the log has not been changed then.
    """
    checkpoint = read_checkpoint(files, settings.checkpoint_path)
    if checkpoint is None and files.exists(settings.checkpoint_path):
        _log.warning("%s is torn, going on without it", settings.checkpoint_path)
    index = DuplicateIndex(settings.dedup_window)
    if not list_segments(files, settings.wal_dir):
        segment, wal_id = _begin(files, settings, checkpoint, held, now_ms, store, new_id)
        log = _log_at(files, settings, syncer, wal_id, segment, now_ms)
        start = Checkpoint(
            wal_id=wal_id, environment=settings.environment, wal_offset=0, last_command_id=0
        )
        return OpenedLog(log, index, start, 1, 0)
    scan, evidence, progress = examine(files, settings, checkpoint, held, store)
    load_index(files, scan, index, settings.dedup_window)
    recovered = recover(files, scan, evidence, settings.wal_tail, syncer)
    if store is not None:
        catch_up(files, LogExtent(scan.segments, scan.wal_id, scan.start, scan.blocks_end), store)
    known = _known_progress(settings, recovered, checkpoint, progress)
    log = _log_at(files, settings, syncer, recovered.wal_id, recovered.last_segment, now_ms)
    given = max(known.last_command_id, checkpoint.last_command_id if checkpoint else 0)
    next_command_id = max(recovered.next_command_id, given + 1)
    _log.info(
        "recovered log %s: %d bytes from offset %d, %d entries to replicate, next command_id %d",
        recovered.wal_id,
        recovered.end - scan.start,
        scan.start,
        recovered.entries_to_replicate,
        next_command_id,
    )
    first_command_id = read_owner(files, settings.wal_dir).first_command_id
    kept_from = scan.kept_from if scan.kept_from or first_command_id > 1 else None
    return OpenedLog(log, index, known, next_command_id, recovered.entries_to_replicate, kept_from)


def examine(
    files: FileSystem,
    settings: Settings,
    checkpoint: Checkpoint | None,
    held: EnvironmentSummary | None,
    store: CommitmentStore | None,
) -> tuple[Scan, Evidence, Progress | None]:
    """Read a log to its end; returns that, the evidence, and the progress row if it is this log's.

    Changes nothing. Raises `CorruptionError` and `StartRefused` as `scan_log` does.
    """
    wal_id = read_owner(files, settings.wal_dir).wal_id
    progress = held.progress if held else None
    if progress is not None and progress.wal_id != wal_id:
        progress = None  # it speaks of another log; replication will refuse and say so
    applied = (store.reached(wal_id) or 0) if store is not None else 0
    evidence = replace(
        _evidence(checkpoint, progress, applied),
        is_told=held is not None and held.progress is progress,
        replicated=max(known.wal_offset if known else 0 for known in (checkpoint, progress)),
    )
    scan = scan_log(
        files, settings.wal_dir, settings.environment, checkpoint, evidence, settings.dedup_window
    )
    return scan, evidence, progress


def begin_log(
    files: FileSystem,
    settings: Settings,
    wal_id: str,
    first_command_id: int,
    now_ms: Callable[[], int],
) -> Segment:
    """Create the first segment of a new log, durably."""
    remove_drafts(files, settings.wal_dir)
    genesis = Genesis(
        offset=0,
        wal_id=wal_id,
        environment=settings.environment,
        created_ms=now_ms(),
        first_command_id=first_command_id,
    )
    return create_segment(files, settings.wal_dir, genesis)


def _begin(
    files: FileSystem,
    settings: Settings,
    checkpoint: Checkpoint | None,
    held: EnvironmentSummary | None,
    now_ms: Callable[[], int],
    store: CommitmentStore | None,
    new_id: Callable[[], str],
) -> tuple[Segment, str]:
    """Begin a new log in an empty directory, if that can't fork the journal."""
    if store is not None and store.wal_id is not None:
        raise StartRefused(
            f"the commitment store knows of the log {store.wal_id} up to block "
            f"{store.state.height - 1}, but {settings.wal_dir} holds no segment"
        )
    if files.exists(settings.checkpoint_path):
        known = (
            f"the log {checkpoint.wal_id} up to offset {checkpoint.wal_offset}"
            if checkpoint
            else "a log, though it is torn"
        )
        raise StartRefused(
            f"{settings.checkpoint_path} knows of {known}, but {settings.wal_dir} holds no segment"
        )
    if held is None and not settings.allow_new_wal:
        raise StartRefused(
            f"{settings.wal_dir} is empty and Postgres can't be reached to ask whether environment "
            f"{settings.environment!r} was journaled before; start it, or set "
            "JOURNAL_ALLOW_NEW_WAL=true"
        )
    if held is not None and held.used:
        raise StartRefused(
            f"{settings.wal_dir} is empty, but Postgres holds {_describe(held)} of environment "
            f"{settings.environment!r}; `journal adopt` begins a log that goes on behind them"
        )
    wal_id = new_id()
    _log.info("beginning the log %s of environment %r", wal_id, settings.environment)
    return begin_log(files, settings, wal_id, 1, now_ms), wal_id


def _describe(held: EnvironmentSummary) -> str:
    newest = held.newest_command_id or (held.progress.last_command_id if held.progress else 0)
    log = f" (log {held.progress.wal_id})" if held.progress else ""
    return f"commands up to command_id {newest}{log}"


def _log_at(
    files: FileSystem,
    settings: Settings,
    syncer: Syncer,
    wal_id: str,
    segment: Segment,
    now_ms: Callable[[], int],
) -> Log:
    return Log(
        files,
        syncer,
        wal_id=wal_id,
        environment=settings.environment,
        segment_bytes=settings.wal_segment_bytes,
        now_ms=now_ms,
        segment=segment,
    )


def _evidence(checkpoint: Checkpoint | None, progress: Progress | None, applied: int) -> Evidence:
    """The highest offset known to have been durable, and who says so."""
    known = Evidence(0, "nothing")
    if checkpoint is not None:
        # What was given back had been durable too, also where Postgres has gone back since.
        offset = max(checkpoint.wal_offset, checkpoint.retained_offset)
        known = Evidence(offset, "the checkpoint")
    if progress is not None and (checkpoint is None or progress.wal_offset > known.offset):
        known = Evidence(progress.wal_offset, "the progress row in Postgres")
    if applied > known.offset:
        known = Evidence(applied, "the commitment store")
    return known


def _known_progress(
    settings: Settings,
    recovered: Recovered,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> Checkpoint:
    """Where replication stands as far as can be told now: the progress row is the truth."""
    source = progress or checkpoint
    if progress and checkpoint and progress.wal_offset < checkpoint.wal_offset:
        _log.warning(
            "Postgres has gone back: the log was replicated up to %d, it now holds up to %d",
            checkpoint.wal_offset,
            progress.wal_offset,
        )
    return Checkpoint(
        wal_id=recovered.wal_id,
        environment=settings.environment,
        wal_offset=source.wal_offset if source else 0,
        last_command_id=source.last_command_id if source else 0,
        last_l2_seq=source.last_l2_seq if source else None,
        retained_offset=recovered.retained_offset,
    )
