"""The duplicate index: which `request_uuid`s the newest entries have.

It covers at least the newest `window` entries (protocol, section 2). An entry gets in only after
its sync. It holds no content: that is in the log, which is kept for as long as the index covers it.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

_TRIM_AT = 1024


class CoveredRecord(NamedTuple):
    """A record whose entries the index covers: where it lies, and its first command_id."""

    offset: int
    end: int
    first_command_id: int


class DuplicateIndex:
    """Maps `request_uuid`s, as integers, to `command_id`s; drops the oldest records.

    Reads are safe from other threads; only the writer adds.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._known: dict[int, int] = {}
        # Parallel lists, one item a batch that is still covered, from `_first` on.
        self._keys: list[Sequence[int]] = []
        self._offsets: list[int] = []
        self._ends: list[int] = []
        self._last_ids: list[int] = []
        self._first = 0
        # Where the oldest covered record begins, so that the log is kept from there on; None when
        # empty. And the first command_id that is surely covered. Plain attributes, since other
        # threads read them.
        self.start_offset: int | None = None
        self.oldest_command_id: int | None = None

    def __len__(self) -> int:
        return len(self._known)

    def unseen(self, keys: Sequence[int]) -> bool:
        """Whether none of the keys is known: the common case, answered at once."""
        return self._known.keys().isdisjoint(keys)

    def get(self, key: int) -> int | None:
        """The command_id of a key; None when it is unknown."""
        return self._known.get(key)

    def record_of(self, command_id: int) -> CoveredRecord:
        """The record that holds a covered command."""
        at = bisect_left(self._last_ids, command_id, lo=self._first)
        first = self._last_ids[at] - len(self._keys[at]) + 1
        return CoveredRecord(self._offsets[at], self._ends[at], first)

    def add(self, offset: int, end: int, first_command_id: int, keys: Sequence[int]) -> None:
        """Add the entries of a synced record, and drop records that are not needed any more."""
        ids = range(first_command_id, first_command_id + len(keys))
        self._known.update(zip(keys, ids, strict=True))
        self._keys.append(keys)
        self._offsets.append(offset)
        self._ends.append(end)
        self._last_ids.append(ids[-1])
        self._evict()
        self.start_offset = self._offsets[self._first]
        self.oldest_command_id = self._last_ids[self._first] - len(self._keys[self._first]) + 1

    def _evict(self) -> None:
        known = self._known
        while len(known) - len(self._keys[self._first]) >= self._window:
            last = self._last_ids[self._first]
            for key in self._keys[self._first]:
                # A key may be journaled again once it has left the window: its newer entry stays.
                if known[key] <= last:
                    del known[key]
            self._keys[self._first] = ()
            self._first += 1
        if self._first >= _TRIM_AT:
            for items in (self._keys, self._offsets, self._ends, self._last_ids):
                del items[: self._first]
            self._first = 0
