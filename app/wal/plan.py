"""What becomes of the requests that the writer takes at once.

New entries go into the record; repeated ones are told from other content under the same
`request_uuid`. Decided by the writer alone, while it builds a record (protocol, section 2).
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from app.errors import CorruptionError, EntryFault, RequestConflict, Unavailable
from app.model.codec import MAX_FAULTS, PreparedRequest, canonical_bytes
from app.model.entry import Entry
from app.model.packing import pack_array, split_array
from app.wal.decoding import at_any_depth
from app.wal.dedup import DuplicateIndex
from app.wal.record import decode_command

_log = logging.getLogger(__name__)

# Of records that were read back, so much is kept for the requests that follow: many small ones that
# are sent again may be in one. A larger record is kept for one request alone.
_CACHED_BYTES: Final = 4 << 20
# What reading an entry back, and comparing it, may raise. The last two only something that no
# client could have sent: recovery leaves the commands of a log encoded.
_UNREADABLE: Final = (
    OSError,
    CorruptionError,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
)


class Verdict(NamedTuple):
    """What becomes of one request: how many entries are new, which are duplicates, or a refusal.

    `command_id`s are those that the entries get if the record is written. Indices in `repeated`
    point into the request, with the command_id of the earlier entry.
    """

    taken: int
    first_command_id: int
    repeated: list[tuple[int, int]]
    refusal: RequestConflict | Unavailable | None
    # Whether the answer stands only once the record is durable, and where it ends already if not.
    needs_record: bool
    end_offset: int


class Plan:
    """One record in the making: the entries to write, in order, and their encodings."""

    def __init__(self, first_command_id: int) -> None:
        self.first_command_id = first_command_id
        self.keys: list[int] = []
        self.packed: list[bytes | memoryview] = []
        self.requests: list[PreparedRequest] = []
        self._entries: list[Entry] = []
        # So many of the requests are in `_entries`.
        self._decoded = 0
        # Keys of this record, which is not durable yet.
        self.pending: dict[int, int] = {}
        self.duplicates = 0
        self.may_make_block = False

    @property
    def size_bytes(self) -> int:
        """How much of the record the entries take."""
        return sum(map(len, self.packed))

    @property
    def entries(self) -> list[Entry]:
        """The entries, which are decoded when they are needed."""
        for request in self.requests[self._decoded :]:
            self._entries += request.entries
        self._decoded = len(self.requests)
        return self._entries

    def ids_of(self, keys: list[int]) -> dict[int, int]:
        """The `command_id`s that further entries of these keys would get."""
        first = self.first_command_id + len(self.keys)
        return dict(zip(keys, range(first, first + len(keys)), strict=True))

    def add(self, request: PreparedRequest, ids: dict[int, int]) -> Verdict:
        """Take a request of new entries into the record, under `ids_of` its keys."""
        first = self.first_command_id + len(self.keys)
        self.pending.update(ids)
        self.keys += request.keys
        self.packed.append(request.packed)
        self.may_make_block |= request.may_make_block
        self.requests.append(request)
        return Verdict(len(ids), first, [], None, needs_record=True, end_offset=0)


class Planner:
    """Decides what becomes of requests, one after the other.

    `read_commands` reads the batch at an offset of the log back, commands left encoded.
    """

    def __init__(
        self, index: DuplicateIndex, read_commands: Callable[[int], Sequence[Raw]]
    ) -> None:
        self._index = index
        self._read_commands = read_commands
        # By offset, with their sizes.
        self._cache: OrderedDict[int, tuple[int, Sequence[Raw]]] = OrderedDict()
        self._cached_bytes = 0

    def place(self, request: PreparedRequest, plan: Plan) -> Verdict:
        """Take what is new of a request into the plan, nothing of it when it is refused."""
        keys = request.keys
        ids = plan.ids_of(keys)
        if (
            len(ids) == len(keys)
            and self._index.unseen(keys)
            and plan.pending.keys().isdisjoint(keys)
        ):
            return plan.add(request, ids)
        try:
            return self._sift(request, plan)
        except _UNREADABLE as error:
            _log.error("a repeated entry can't be compared with what was journaled: %s", error)
            refusal = Unavailable(f"what was journaled before can't be read back: {error}")
            return Verdict(0, 0, [], refusal, needs_record=False, end_offset=0)
        finally:
            self._make_room(0)

    def _sift(self, request: PreparedRequest, plan: Plan) -> Verdict:
        """Tell new entries, duplicates and conflicts apart."""
        encoded = split_array(request.array)
        fresh: dict[int, int] = {}
        taken: list[int] = []
        repeated: list[tuple[int, int]] = []
        faults: list[EntryFault] = []
        recorded = self._recorded(request, encoded)
        leans = False
        next_id = plan.first_command_id + len(plan.keys)
        for at, key in enumerate(request.keys):
            entry = request.entries[at]
            if at in recorded:
                earlier, same = recorded[at]
            elif key in fresh:
                earlier = fresh[key]
                same = _is_same(entry, request.entries[taken[earlier - next_id]])
            elif (waiting := plan.pending.get(key)) is not None:
                same = _is_same(entry, plan.entries[waiting - plan.first_command_id])
                earlier = waiting
                leans = True
            else:
                fresh[key] = next_id + len(taken)
                taken.append(at)
                continue
            if same:
                repeated.append((at, earlier))
            else:
                message = f"request_uuid {entry.request_uuid} was used before with other content"
                faults.append(EntryFault(at, "request_uuid", message))
        if faults:
            refusal = RequestConflict(faults[0].message, tuple(faults[:MAX_FAULTS]))
            return Verdict(0, 0, [], refusal, leans, 0)
        plan.duplicates += len(repeated)
        if fresh:
            array = pack_array(len(taken), (bytes(encoded[at]) for at in taken))
            entries = [request.entries[at] for at in taken]
            new = plan.add(PreparedRequest(list(fresh), memoryview(array), entries), fresh)
            return new._replace(repeated=repeated)
        ids = [earlier for _, earlier in repeated if earlier < plan.first_command_id]
        end = max((self._index.record_of(command_id).end for command_id in ids), default=0)
        return Verdict(0, 0, repeated, None, leans, end)

    def _recorded(
        self, request: PreparedRequest, encoded: Sequence[Raw]
    ) -> dict[int, tuple[int, bool]]:
        """The `command_id`s of entries that the log holds, and whether with the same content.

        By their index in the request. They are looked at in the order of the log: each record is
        read back once, and one large record is there at a time.
        """
        known = [(self._index.get(key), at) for at, key in enumerate(request.keys)]
        return {
            at: (durable, self._is_recorded(durable, request.entries[at], encoded[at]))
            for durable, at in sorted((durable, at) for durable, at in known if durable is not None)
        }

    def _is_recorded(self, command_id: int, entry: Entry, encoded: Raw) -> bool:
        """Whether the log holds the same content under a command_id."""
        record = self._index.record_of(command_id)
        if record.offset not in self._cache:
            size_bytes = record.end - record.offset
            self._make_room(size_bytes)
            self._cache[record.offset] = size_bytes, self._read_commands(record.offset)
            self._cached_bytes += size_bytes
        _, commands = self._cache[record.offset]
        recorded = commands[command_id - record.first_command_id]
        return bytes(recorded) == bytes(encoded) or at_any_depth(
            lambda: _is_same(entry, decode_command(recorded))
        )

    def _make_room(self, size_bytes: int) -> None:
        """Forget the oldest records that were read back, so that as much as this may be kept."""
        while self._cache and self._cached_bytes + size_bytes > _CACHED_BYTES:
            _, (forgotten_bytes, _) = self._cache.popitem(last=False)
            self._cached_bytes -= forgotten_bytes


def _is_same(one: Entry, other: Entry) -> bool:
    return canonical_bytes(one) == canonical_bytes(other)
