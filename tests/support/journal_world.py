"""What the world outside knows of a journal: what was acknowledged, sent and replicated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgpack

from app.errors import DiskFull
from app.model.codec import PreparedRequest
from app.replication.rows import Progress
from app.wal.writer import Appended, Outcome

DEDUP_WINDOW: Final = 12
_NO_ID: Final = 1 << 62


class Journaled(NamedTuple):
    """An entry that must be found: its id, its content, and the end of its record."""

    command_id: int
    request_uuid: UUID
    content: dict[str, Any]
    end: int


@dataclass(frozen=True, slots=True)
class World:
    """What clients and Postgres know.

    `settled` entries were acknowledged, or read from a log that was opened since; requests that are
    `waiting` were sent and not answered. `replicated` is the highest offset that Postgres ever had,
    `height` that of the newest block that is known of.
    """

    settled: tuple[Journaled, ...] = ()
    waiting: tuple[PreparedRequest, ...] = ()
    progress: Progress | None = None
    replicated: int = 0
    height: int = -1

    @property
    def facts(self) -> tuple[int, int, int]:
        """What tells one from another in the same workload."""
        at = self.progress.wal_offset if self.progress else 0
        return len(self.settled), len(self.waiting), at

    @property
    def ids(self) -> dict[UUID, int]:
        """The newest `command_id` of each `request_uuid`."""
        return {each.request_uuid: each.command_id for each in self.settled}

    @property
    def ends(self) -> list[int]:
        """The ends of all records."""
        return sorted({each.end for each in self.settled})

    def sent(self, requests: Sequence[PreparedRequest]) -> "World":
        return replace(self, waiting=tuple(requests))

    def answered(self, request: PreparedRequest, outcome: Outcome) -> "World":
        """The first of the waiting requests has its answer."""
        assert self.waiting[0] is request
        settled, height = self.settled, self.height
        if isinstance(outcome, Appended):
            settled += self._acknowledged(request, outcome)
            if outcome.block_height is not None:
                height = max(height, outcome.block_height)
        else:
            assert isinstance(outcome, DiskFull), outcome
        return replace(self, settled=settled, waiting=self.waiting[1:], height=height)

    def replicated_up_to(self, end: int, wal_id: str) -> "World":
        newest = max(each.command_id for each in self.settled if each.end <= end)
        progress = Progress(wal_id=wal_id, wal_offset=end, last_command_id=newest)
        return replace(self, progress=progress, replicated=max(self.replicated, end))

    def _acknowledged(self, request: PreparedRequest, outcome: Appended) -> tuple[Journaled, ...]:
        """The entries that an acknowledgement says were journaled, none of them in the window."""
        first = outcome.first_command_id
        earlier = [each for each in outcome.duplicates if each.command_id < (first or _NO_ID)]
        known = {each.request_uuid: each.command_id for each in earlier}
        entries = list(new_entries(request, known))
        last = None if first is None else first + len(entries) - 1
        assert (first is None, outcome.last_command_id) == (not entries, last)
        assert outcome.count == len(entries) + len(outcome.duplicates)
        added = tuple(
            Journaled((first or 0) + number, uuid, content, outcome.wal_offset)
            for number, (uuid, content) in enumerate(entries)
        )
        ids = self.ids | {each.request_uuid: each.command_id for each in added}
        assert all(ids[each.request_uuid] == each.command_id for each in outcome.duplicates)
        window = {each.request_uuid for each in self.settled[-DEDUP_WINDOW:]}
        assert window.isdisjoint(each.request_uuid for each in added)
        return added


def new_entries(
    request: PreparedRequest, known: dict[UUID, int]
) -> Iterator[tuple[UUID, dict[str, Any]]]:
    """The entries that a request adds to a log."""
    seen = set(known)
    contents = msgpack.Unpacker(BytesIO(request.packed), strict_map_key=False)
    for content in contents:
        uuid = UUID(bytes=content["request_uuid"])
        if uuid not in seen:
            seen.add(uuid)
            yield uuid, content
