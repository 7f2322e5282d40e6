"""The commitment store after a killed process, a power cut and a full disk.

A killed process loses nothing that was applied: it is in the page cache. A power cut may lose
whatever was written after the last sync, in any part; here it is played on copies of the files.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from app.chain import rocks
from app.chain.pipeline import ChainState
from app.chain.store import CommitmentStore
from app.errors import StoreCorrupt, StoreFull
from app.model.entry import Entry
from tests.support.small_volume import FileSystemKind, small_volume
from tests.support.store_blocks import RECORD_BYTES, apply, batches_of, command, open_store

ROOT = Path(__file__).parents[2]
SECTOR_BYTES = 512
BATCHES = batches_of(*[5] * 40)
SYNCED = 10


def apply_all(store: CommitmentStore, batches: list[list[Entry]]) -> list[ChainState]:
    """Apply and return every state there was, the one before included."""
    states = [store.state]
    for batch in batches:
        apply(store, batch)
        states.append(store.state)
    return states


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[ChainState]:
    """The states of a store that nothing happened to: by height."""
    store = open_store(tmp_path_factory.mktemp("calm"))
    found = apply_all(store, BATCHES)
    store.close()
    return found


def check_older(path: Path, states: list[ChainState], at_least: int) -> int:
    """A store that lost its tail is an older one, and the same blocks lead to the same roots."""
    store = open_store(path)
    height = store.state.height
    assert height >= at_least
    assert store.state == states[height]
    assert store.wal_offset == height * RECORD_BYTES
    for block in store.blocks(None, len(BATCHES), descending=False):
        assert len(store.commands(block.header.batch_seq)) == block.header.command_count
    assert apply_all(store, BATCHES[height:])[-1] == states[-1]
    store.close()
    store = open_store(path)
    assert store.state == states[-1]
    store.close()
    return height


@pytest.fixture
def cut(tmp_path: Path) -> tuple[Path, bytes, int]:
    """The files as they were at the last sync; RocksDB's log as it went on, and its synced size."""
    path, durable = tmp_path / "running", tmp_path / "durable"
    store = open_store(path)
    apply_all(store, BATCHES[:SYNCED])
    store.sync()
    shutil.copytree(path, durable)
    (log,) = durable.glob("*.log")
    apply_all(store, BATCHES[SYNCED:])
    written = (path / log.name).read_bytes()
    store.close()
    return log, written, log.stat().st_size


def test_a_power_cut_leaves_an_older_store(
    cut: tuple[Path, bytes, int], states: list[ChainState], rng: Random
) -> None:
    log, written, synced = cut
    seen = set()
    lengths = [synced, len(written), *(rng.randint(synced, len(written)) for _ in range(12))]
    for length in lengths:
        log.write_bytes(written[:length])
        seen.add(check_copy(log, states))
    assert {SYNCED, len(BATCHES)} < seen


def test_sectors_that_were_never_written_end_the_store(
    cut: tuple[Path, bytes, int], states: list[ChainState], rng: Random
) -> None:
    log, written, synced = cut
    for _ in range(12):
        torn = bytearray(written)
        first = synced // SECTOR_BYTES + 1
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(first, len(written) // SECTOR_BYTES) * SECTOR_BYTES
            torn[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)
        log.write_bytes(torn)
        assert check_copy(log, states) < len(BATCHES)


def check_copy(log: Path, states: list[ChainState]) -> int:
    copy = log.parent.with_name("copy")
    shutil.copytree(log.parent, copy)
    try:
        return check_older(copy, states, SYNCED)
    finally:
        shutil.rmtree(copy)


def test_a_gap_between_two_of_its_logs_never_goes_unnoticed(
    tmp_path: Path, states: list[ChainState], rng: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older log lost its tail, the newer was written, and no table made of them is durable."""
    path, durable = tmp_path / "running", tmp_path / "durable"
    store = open_store(path)
    apply_all(store, BATCHES[:SYNCED])
    store.sync()
    shutil.copytree(path, durable)
    (log,) = durable.glob("*.log")
    monkeypatch.setattr(rocks, "_BUFFERED_BYTES", 16 * 1024)
    kept: dict[str, bytes] = {}
    for batch in BATCHES[SYNCED:]:
        # The file goes once its data is in a table: keep what it held just before.
        kept |= read_logs(path)
        apply(store, batch)
    kept |= read_logs(path)
    store.close()
    synced = log.stat().st_size
    newer = {name: data for name, data in kept.items() if name > log.name}
    assert newer
    outcomes = set()
    for length in (synced, *(rng.randint(synced, len(kept[log.name])) for _ in range(6))):
        log.write_bytes(kept[log.name][:length])
        for name, data in newer.items():
            log.with_name(name).write_bytes(data)
        outcomes.add(outcome_of_copy(log, states))
    assert outcomes <= {"older", "refused"}


def read_logs(path: Path) -> dict[str, bytes]:
    found = {}
    for file in path.glob("*.log"):
        with suppress(FileNotFoundError):
            found[file.name] = file.read_bytes()
    return found


def outcome_of_copy(log: Path, states: list[ChainState]) -> str:
    try:
        return "older" if check_copy(log, states) < len(BATCHES) else "whole"
    except StoreCorrupt:
        return "refused"


WRITER = """
import sys
from pathlib import Path
from app.chain import rocks
from tests.crash.test_store_power_loss import BATCHES
from tests.support.store_blocks import apply, open_store

rocks._BUFFERED_BYTES = int(sys.argv[2])
store = open_store(Path(sys.argv[1]))
for batch in BATCHES[store.state.height:]:
    apply(store, batch)
    print(store.state.height, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("buffered_bytes", [2**20, 4 * 1024])
def test_a_killed_process_loses_nothing_that_was_applied(
    tmp_path: Path, states: list[ChainState], rng: Random, buffered_bytes: int
) -> None:
    path, applied = tmp_path / "store", 0
    while applied < len(BATCHES):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(buffered_bytes)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            until = min(applied + rng.randint(1, 15), len(BATCHES))
            while applied < until:
                applied = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            applied = max([applied, *map(int, process.stdout.read().split())])
        store = open_store(path)
        assert store.state.height in (applied, applied + 1)
        assert store.state == states[store.state.height]
        assert store.wal_offset == store.state.height * RECORD_BYTES
        applied = store.state.height
        store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_volume(tmp_path, FileSystemKind.TMPFS, 24) as volume:
        yield volume


def test_a_full_disk_is_reported_and_the_store_goes_on_when_opened_anew(small_disk: Path) -> None:
    path, ballast = small_disk / "commitments", small_disk / "ballast"
    store, calm = open_store(path), open_store(small_disk.parent / "calm")
    apply(store, [command(0)])
    apply(calm, [command(0)])
    fill_disk(ballast, leaving=1 << 20)
    batch = [command(number) for number in range(200)]
    with pytest.raises(StoreFull, match="No space left"):
        fill(store, calm, batch)
    height = store.state.height
    assert height == calm.state.height > 2
    for again in (lambda: apply(store, batch), store.sync):
        with pytest.raises(StoreFull):
            again()
    assert store.state == calm.state
    assert len(store.commands(height - 1)) == len(batch)
    store.close()
    fill_disk(ballast, leaving=0)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(StoreFull):
            open_store(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    ballast.unlink()
    store = open_store(path)
    assert store.state == calm.state
    for opened in (store, calm):
        apply(opened, batch)
        opened.sync()
        opened.close()
    store = open_store(path)
    assert store.state.height == height + 1
    store.close()


def fill_disk(ballast: Path, leaving: int) -> None:
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            status = os.statvfs(ballast.parent)
            spare = status.f_bavail * status.f_frsize - leaving
            if spare <= 0:
                return
            file.write(bytes(min(spare, 1 << 20)))


def fill(store: CommitmentStore, calm: CommitmentStore, batch: list[Entry]) -> None:
    while True:
        apply(store, batch)
        apply(calm, batch)
