"""A machine that may lose its power: the simulated disk, and beside it the commitment store's keys.

RocksDB writes files of its own, past the seam. What a power cut leaves of them is simpler: each
batch whole, in their order, up to some batch behind the last sync (`test_store_power_loss` shows
that of the real one).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from app.chain.rocks import Pair, Rocks
from app.chain.store import CommitmentStore
from app.chain.store_reading import StoreReader, load, read_cursor, read_seen
from tests.support.faulty_files import Call
from tests.support.simulated_disk import EMPTY, Disk, Survivors


class Batch(NamedTuple):
    puts: tuple[Pair, ...]
    deletes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StoreImage:
    """What is durable, and the batches that were written since."""

    durable: Mapping[bytes, bytes]
    batches: tuple[Batch, ...] = ()

    @property
    def pairs(self) -> dict[bytes, bytes]:
        """What a reader sees."""
        pairs = dict(self.durable)
        for puts, deletes in self.batches:
            pairs.update(puts)
            for key in deletes:
                pairs.pop(key, None)
        return pairs

    def after(self, survivors: Survivors) -> "StoreImage":
        """What a power cut leaves."""
        kept = 0
        while kept < len(self.batches) and survivors.keeps():
            kept += 1
        return StoreImage(replace(self, batches=self.batches[:kept]).pairs)


NO_KEYS: Final = StoreImage({})


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that is left when a process is killed. `store` is None where blocks are off."""

    disk: Disk = EMPTY
    store: StoreImage | None = None

    def after(self, survivors: Survivors) -> "Machine":
        """What a power cut leaves."""
        store = None if self.store is None else self.store.after(survivors)
        return Machine(self.disk.after(survivors), store)


class SimulatedRocks(Rocks):
    """The database under the commitment store, in memory; `before` is told of what changes it."""

    def __init__(self, image: StoreImage, before: Callable[[Call], None]) -> None:
        self.path = Path("/srv/data/commitments")
        self.image = image
        self._before = before
        self._pairs = image.pairs
        self._keys = sorted(self._pairs)

    def get(self, key: bytes) -> bytes | None:
        return self._pairs.get(key)

    def get_all(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._pairs.get(key) for key in keys]

    def at_or_before(self, key: bytes) -> Pair | None:
        return self._pair(bisect_right(self._keys, key) - 1)

    def at_or_after(self, key: bytes) -> Pair | None:
        return self._pair(bisect_left(self._keys, key))

    def backwards(self, from_key: bytes, down_to: bytes) -> list[bytes]:
        start, end = bisect_left(self._keys, down_to), bisect_right(self._keys, from_key)
        return [self._pairs[key] for key in reversed(self._keys[start:end])]

    def write(self, puts: Sequence[Pair], deletes: Sequence[bytes] = ()) -> None:
        self._before(Call("apply", "commitments"))
        batch = Batch(tuple(puts), tuple(deletes))
        self.image = replace(self.image, batches=(*self.image.batches, batch))
        self._pairs.update(puts)
        for key in deletes:
            self._pairs.pop(key, None)
        self._keys = sorted(self._pairs)

    def sync(self) -> None:
        self._before(Call("sync", "commitments"))
        self.image = StoreImage(dict(self._pairs))

    def close(self) -> None:
        """Nothing is held; and a process that dies closes nothing."""

    def _pair(self, index: int) -> Pair | None:
        if not 0 <= index < len(self._keys):
            return None
        return self._keys[index], self._pairs[self._keys[index]]


def open_store(rocks: SimulatedRocks, environment: str) -> CommitmentStore:
    """As `CommitmentStore.open` does, on another database."""
    cursor = read_cursor(rocks, environment)
    reader = StoreReader(rocks)
    applied = load(reader, cursor)
    return CommitmentStore(rocks, environment, applied, cursor.pruned, None, read_seen(reader))
