"""RocksDB under the commitment store: the only module that knows `rocksdict`.

It opens with bounded memory and descriptors, and turns RocksDB's errors, which are plain text, into
the project's. `rocksdict` keeps the interpreter locked in every call but `flush`, `flush_wal`,
`close` and a `get` of a list. So what may take long in writing is left to the first two: `flush`
exchanges a full write buffer before RocksDB would do so in a write; a write that would have to wait
returns at once (`no_slowdown`); the limits that slow writes down for compaction's sake are off.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Final, TypeVar

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
    WriteOptions,
)

from app.errors import JournalError, StoreCorrupt, StoreFailed, StoreFull, WalLocked
from app.wal.files import FileSystem

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_BLOCK_CACHE_BYTES: Final = 16 * _MIB
_WRITE_BUFFERS: Final = 4
_BUFFERED_BYTES: Final = 6 * _MIB
# Keys and their place in the buffer cost as much again: RocksDB's own limit is never met.
_WRITE_BUFFER_BYTES: Final = 4 * _BUFFERED_BYTES
_LEVEL_BYTES: Final = 32 * _MIB
_OPEN_FILES: Final = 64
_UNLIMITED: Final = 2**31 - 1
_DEFAULT_FAMILY: Final = "default"
_STALLED: Final = "Result incomplete"
_LOCKED: Final = ("lock hold by current process", "/LOCK: Resource temporarily unavailable")
_DAMAGED: Final = ("Corruption:", "Invalid argument:", "No such file or directory")
_CURRENT: Final = "CURRENT"
_DATA_SUFFIXES: Final = (".sst", ".log")
_FULL: Final = ("No space left on device", "Disk quota exceeded")

Pair = tuple[bytes, bytes]
T = TypeVar("T")


class Rocks:
    """An open database of bytes. Reads are safe from any thread; one thread at a time writes.

    After a failed write or sync every further one fails likewise until the database is opened
    anew, so that nothing can be written on top of what is missing; reads go on.
    """

    def __init__(self, path: Path, database: Rdict) -> None:
        self.path = path
        self._database = database
        self._options = WriteOptions()
        self._options.no_slowdown = True
        self._buffered_bytes = 0
        self._failure: str | None = None
        self._closed = False
        # Threads wait for each other here, where that leaves the interpreter unlocked. `_reading`
        # is for reads during which another thread may run: a database is not closed under them.
        self._writing = Lock()
        self._syncing = Lock()
        self._reading = Lock()

    @classmethod
    def open(cls, path: Path) -> "Rocks":
        """Open the database in directory `path`, or create it where there is none.

        RocksDB makes files as the process's umask lets it, which must keep others out.
        Raises `StoreCorrupt`, `StoreFull`, `StoreFailed`; `WalLocked` when it is open elsewhere.
        """
        options = _options()
        try:
            _check_directory(path)
            # Without its own entry the family would take the options it was last opened with.
            return cls(path, Rdict(str(path), options, {_DEFAULT_FAMILY: options}))
        except JournalError:
            raise
        except Exception as error:
            raise _translation(path, str(error)) from error

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None when there is none."""
        self._refuse_when_closed()
        try:
            value: bytes | None = self._database.get(key)
        except Exception as error:
            raise _translation(self.path, str(error)) from error
        return value

    def get_all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several keys."""

        def read() -> list[bytes | None]:
            values: list[bytes | None] | None = self._database.get(list(keys))
            return values or []

        return self._read(read)

    def at_or_before(self, key: bytes) -> Pair | None:
        """The key that is not above `key` and closest to it, with its value."""

        def seek(at: RdictIter) -> Pair | None:
            at.seek_for_prev(key)
            return _pair(at)

        return self._iterate(seek)

    def at_or_after(self, key: bytes) -> Pair | None:
        """The key that is not below `key` and closest to it, with its value."""

        def seek(at: RdictIter) -> Pair | None:
            at.seek(key)
            return _pair(at)

        return self._iterate(seek)

    def backwards(self, from_key: bytes, down_to: bytes) -> list[bytes]:
        """The values of all keys from `from_key` down to `down_to`, both included, at once."""

        def collect(at: RdictIter) -> list[bytes]:
            values = []
            at.seek_for_prev(from_key)
            while (pair := _pair(at)) is not None and pair[0] >= down_to:
                values.append(pair[1])
                at.prev()
            return values

        return self._iterate(collect)

    def write(self, puts: Sequence[Pair], deletes: Sequence[bytes] = ()) -> None:
        """Write all at once or nothing; not synced. Raises `StoreFull`, `StoreFailed`."""
        with self._writing, self._failing_for_good():
            while not self._write(puts, deletes):
                # All write buffers are full: wait, the interpreter unlocked, until one is written.
                self._database.flush(wait=True)
            if self._buffered_bytes >= _BUFFERED_BYTES:
                self._exchange_buffer()

    def sync(self) -> None:
        """Make all that was written before this call durable. Raises `StoreFull`, `StoreFailed`."""
        with self._syncing, self._failing_for_good():
            self._database.flush_wal(sync=True)

    def close(self) -> None:
        """Sync, flush and close; a second time does nothing.

        Raises as `sync` does, but is closed even then. Silent after a failed write or sync.
        """
        with self._writing, self._syncing:
            if self._closed:
                return
            # Refuses further readers first, or they could keep this waiting.
            self._closed = True
            with self._reading:
                pass
            # This may take a second when the disk is full; readers are refused meanwhile.
            try:
                self._database.close()
            except Exception as error:
                if self._failure is None:
                    raise _translation(self.path, str(error)) from error

    def _write(self, puts: Sequence[Pair], deletes: Sequence[bytes]) -> bool:
        """Write, or return False when that would have to wait."""
        batch = WriteBatch(raw_mode=True)
        put = batch.put
        for key, value in puts:
            put(key, value)
        for key in deletes:
            batch.delete(key)
        size = batch.size_in_bytes()
        try:
            self._database.write(batch, self._options)
        except Exception as error:
            if _STALLED in str(error):
                return False
            raise
        self._buffered_bytes += size
        return True

    def _exchange_buffer(self) -> None:
        """Begin the next write buffer with a log of its own; the full one is written behind it.

        A power cut must not take the end of one log and leave the next: RocksDB would not notice.
        """
        self._database.flush_wal(sync=True)
        self._database.flush(wait=False)
        self._buffered_bytes = 0

    def _iterate(self, step: Callable[[RdictIter], T]) -> T:
        def read() -> T:
            iterator = self._database.iter()
            try:
                found = step(iterator)
                iterator.status()
                return found
            finally:
                # Before the lock is given back: no traceback may keep the database open.
                del iterator

        return self._read(read)

    def _read(self, read: Callable[[], T]) -> T:
        """Read something that the database can't be closed under."""
        self._refuse_when_closed()
        with self._reading:
            self._refuse_when_closed()
            try:
                return read()
            except Exception as error:
                raise _translation(self.path, str(error)) from error

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise StoreFailed(f"{self.path}: the commitment store is closed")

    @contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        self._refuse_when_closed()
        if self._failure is not None:
            raise _translation(self.path, self._failure)
        try:
            yield
        except Exception as error:
            self._failure = str(error)
            raise _translation(self.path, self._failure) from error


def _check_directory(path: Path) -> None:
    """Create the directory. Refuse one that lost its files: RocksDB would begin anew."""
    FileSystem().make_directory(path)
    files = list(path.iterdir())
    if path / _CURRENT not in files and any(file.suffix in _DATA_SUFFIXES for file in files):
        raise StoreCorrupt(str(path), f"{_CURRENT} is missing beside files that hold data")


def _pair(at: RdictIter) -> Pair | None:
    return (at.key(), at.value()) if at.valid() else None


def _translation(path: Path, text: str) -> JournalError:
    """The project's error for what `rocksdict` raised: a plain `Exception` with RocksDB's text."""
    if any(mark in text for mark in _FULL):
        return StoreFull(f"{path}: no room for the commitment store: {text}")
    if any(mark in text for mark in _LOCKED):
        return WalLocked(str(path))
    if any(mark in text for mark in _DAMAGED):
        return StoreCorrupt(str(path), text)
    return StoreFailed(f"{path}: {text}")


def _options() -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    # What was not synced is lost from the first gap on, never in between.
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(_WRITE_BUFFERS)
    options.set_max_open_files(_OPEN_FILES)
    options.set_max_background_jobs(2)
    options.set_max_bytes_for_level_base(_LEVEL_BYTES)
    options.set_target_file_size_base(_LEVEL_BYTES)
    options.set_bytes_per_sync(_MIB)
    _never_slow_down(options)
    _keep_own_logs_small(options)
    tables = BlockBasedOptions()
    tables.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    tables.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options.set_block_based_table_factory(tables)
    options.set_compression_type(DBCompressionType.lz4())
    return options


def _never_slow_down(options: Options) -> None:
    options.set_level_zero_slowdown_writes_trigger(_UNLIMITED)
    options.set_level_zero_stop_writes_trigger(_UNLIMITED)
    options.set_soft_pending_compaction_bytes_limit(0)
    options.set_hard_pending_compaction_bytes_limit(0)


def _keep_own_logs_small(options: Options) -> None:
    options.set_keep_log_file_num(4)
    options.set_max_log_file_size(_MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    options.set_max_manifest_file_size(4 * _MIB)
    options.set_manifest_preallocation_size(64 * _KIB)
