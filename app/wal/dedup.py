"""The duplicate index: which `request_uuid`s the newest entries have, and with what content.

It covers at least the newest `window` entries (protocol, section 2). An entry gets in only after
its sync.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

_TRIM_AT = 1024


class Known(NamedTuple):
    """What is known of a request_uuid in the window."""

    command_id: int
    fingerprint: bytes


class DuplicateIndex:
    """Maps `request_uuid`s, as integers, to `(command_id, fingerprint)`; drops the oldest records.

    Reads are safe from other threads; only the writer adds.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._known: dict[int, tuple[int, bytes]] = {}
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

    def get(self, key: int) -> Known | None:
        """What is known of a key."""
        found = self._known.get(key)
        return None if found is None else Known(*found)

    def end_offset(self, command_id: int) -> int:
        """The end of the record that holds a covered command."""
        return self._ends[bisect_left(self._last_ids, command_id, lo=self._first)]

    def add(
        self,
        offset: int,
        end: int,
        first_command_id: int,
        keys: Sequence[int],
        fingerprints: Sequence[bytes],
    ) -> None:
        """Add the entries of a synced record, and drop records that are not needed any more."""
        ids = range(first_command_id, first_command_id + len(keys))
        self._known.update(zip(keys, zip(ids, fingerprints, strict=True), strict=True))
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
                if known[key][0] <= last:
                    del known[key]
            self._keys[self._first] = ()
            self._first += 1
        if self._first >= _TRIM_AT:
            for items in (self._keys, self._offsets, self._ends, self._last_ids):
                del items[: self._first]
            self._first = 0
