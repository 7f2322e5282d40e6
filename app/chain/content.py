"""What a block takes of a batch: a column of each thing, of its block commands in their order."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, Final, NamedTuple

from app.chain.bulk import gather, split
from app.chain.header import (
    EVENT_DOMAIN,
    EVENT_SHELL,
    IDENTITY_DOMAIN,
    SHELL_CUTS,
    command_identities,
    event_hashes,
)
from app.model.codec import PreparedRequest
from app.model.entry import Entry

ALL_COMMANDS: Final = "*"
_UUID_BYTES: Final = 16


class Content(NamedTuple):
    """`indices` are places in the batch, `events` the hashes of all events.

    `timestamp` is `received_ts_ms` of the batch's last entry, block command or not.
    """

    indices: list[int]
    request_uuids: list[bytes]
    types: list[str]
    identities: list[bytes]
    events: list[bytes]
    timestamp: int


def content_of(
    requests: Sequence[PreparedRequest], block_commands: AbstractSet[str]
) -> Content | None:
    """The content of a batch of these requests; None when it holds no block command.

    Of those that were not decoded nothing is, where compiled functions are loaded.
    """
    parts: list[Content] = []
    decoded: list[Entry] = []
    first = 0
    for request in requests:
        gathered = None if request.is_decoded else gather(request.array)
        if gathered is None:
            decoded += request.entries
            continue
        if decoded:
            parts.append(_of_entries(decoded, block_commands, first))
            first += len(decoded)
            decoded = []
        parts.append(_of_packed(request.keys, gathered, block_commands, first))
        first += len(request.keys)
    if decoded:
        parts.append(_of_entries(decoded, block_commands, first))
    content = _joined(parts)
    return content if content.indices else None


def chosen_content(entries: Sequence[Entry], indices: list[int]) -> Content:
    """The content of a batch of these entries, whose block commands are at `indices`."""
    commands = [entries[index] for index in indices]
    return Content(
        indices,
        [command.request_uuid.bytes for command in commands],
        [command.command_type or "" for command in commands],
        command_identities(commands),
        event_hashes([event for command in commands for event in command.events]),
        entries[-1].received_ts_ms,
    )


def block_indices(types: Iterable[str | None], block_commands: AbstractSet[str]) -> list[int]:
    """Select the block commands by the types of a batch: `*` is every entry that has one."""
    if ALL_COMMANDS in block_commands:
        return [index for index, name in enumerate(types) if name is not None]
    return [index for index, name in enumerate(types) if name in block_commands]


def _of_entries(entries: Sequence[Entry], block_commands: AbstractSet[str], first: int) -> Content:
    chosen = block_indices((entry.command_type for entry in entries), block_commands)
    content = chosen_content(entries, chosen)
    return content._replace(indices=[first + index for index in chosen]) if first else content


def _of_packed(
    keys: Sequence[int], gathered: Any, block_commands: AbstractSet[str], first: int
) -> Content:
    types = gathered.types()
    chosen = block_indices(types, block_commands)
    uuids = [keys[index].to_bytes(_UUID_BYTES) for index in chosen]
    return Content(
        [first + index for index in chosen],
        uuids,
        [types[index] for index in chosen],
        split(gathered.identities(IDENTITY_DOMAIN, b"".join(uuids), chosen)),
        split(gathered.event_hashes(EVENT_DOMAIN, EVENT_SHELL, SHELL_CUTS, chosen)),
        gathered.last_received_ms,
    )


def _joined(parts: Sequence[Content]) -> Content:
    if len(parts) == 1:
        return parts[0]
    return Content(
        list(chain.from_iterable(part.indices for part in parts)),
        list(chain.from_iterable(part.request_uuids for part in parts)),
        list(chain.from_iterable(part.types for part in parts)),
        list(chain.from_iterable(part.identities for part in parts)),
        list(chain.from_iterable(part.events for part in parts)),
        parts[-1].timestamp if parts else 0,
    )
