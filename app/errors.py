"""The exception tree. Every error the project raises on purpose is below `JournalError`.

    JournalError
    ├── OperatingError             the surroundings are in the way: an operator or time can mend it
    │   ├── SettingsError          a setting has a value that is not allowed
    │   ├── StartRefused           starting now could lose or fork the journal
    │   ├── WalLocked              another process owns this WAL directory
    │   ├── DiskFull               no room for the record; it was cut off again
    │   │   └── StoreFull          no room in the commitment store; the record itself is durable
    │   ├── StoreFailed            the commitment store can't be read or written: open it anew
    │   ├── OutsideWindow          the clock has left the window of the key that was to sign
    │   ├── WalFailed              a write or sync failed: nothing further may be acknowledged
    │   ├── WalUnreadable          replication can't read the log right now
    │   ├── DatabaseUnavailable    Postgres can't be reached, or not used, right now
    │   │   └── RevisionMismatch   its schema is at another revision than this version needs
    │   └── ReplicationRefused     Postgres and the WAL contradict each other
    ├── CorruptionError            what is on disk is not what was written
    │   └── StoreCorrupt           so is the commitment store, which can be rebuilt
    ├── InvariantError             the code contradicts itself: a defect
    └── RequestError               a client's request can't be honoured
        ├── InvalidBody            not decodable in its content type
        ├── InvalidEntries         decodable, but breaks a rule of an entry
        ├── TooManyEntries         more entries than MAX_ENTRIES
        ├── TooManyValues          many times as large in memory as MAX_BODY_BYTES
        ├── RequestConflict        a request_uuid was used before with other content
        └── Unavailable            not now: queue full, no descriptors, starting, or shutting down

The client side has branches of its own: `ClientError` in `app.client`, `FeedError` in `app.feed`,
`AccountingError` (a `RequestError`) in `app.model.accounting`; signatures that show nothing raise
`InvalidSignature`, in `app.chain.authority`.

They are translated to HTTP by `app.api.problems` and to exit codes by `app.cli`, nowhere else.
"""

from dataclasses import dataclass
from typing import Final

_LONGEST_MESSAGE: Final = 500


def shortened(text: str) -> str:
    """Beginning and end of a message that repeats something long, such as an unknown field's name.

    Its end tells where that was.
    """
    if len(text) <= _LONGEST_MESSAGE:
        return text
    return f"{text[: _LONGEST_MESSAGE // 2]}...{text[-_LONGEST_MESSAGE // 2 :]}"


class JournalError(Exception):
    """Root of all errors raised on purpose."""


class OperatingError(JournalError):
    """The surroundings are in the way; nothing is wrong with the data or the code."""


class SettingsError(OperatingError):
    """A setting has a value that is not allowed. The message is one line that names all three."""


class StartRefused(OperatingError):
    """Starting now could lose acknowledged entries or fork the journal."""


class WalLocked(OperatingError):
    """Another process holds the lock of a WAL directory."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} is in use by another process: one service owns a data directory")
        self.path = path


class DiskFull(OperatingError):
    """There was no room for the record. What was written of it has been cut off again."""


class StoreFull(DiskFull):
    """The commitment store had no room for a block whose record is durable. Open it anew."""


class StoreFailed(OperatingError):
    """The commitment store can't be read or written as it is. Nothing is known to be damaged."""


class OutsideWindow(OperatingError):
    """A hot key was asked to sign outside its delegation's window, and did not.

    The clock has jumped since the key was given out: ask for the current one, and prepare again.
    """


class WalFailed(OperatingError):
    """A write or a sync of the WAL failed. The process must stop without acknowledging."""


class WalUnreadable(OperatingError):
    """The kernel can't read a file of the log right now. Nothing is known to be damaged."""


class DatabaseUnavailable(OperatingError):
    """Postgres can't be reached, or can't be used, right now."""


class RevisionMismatch(DatabaseUnavailable):
    """The schema is at another revision than this version needs."""


class ReplicationRefused(OperatingError):
    """Postgres and the WAL contradict each other: replication stops and inserts nothing."""


class CorruptionError(JournalError):
    """What is on disk is not what was written. Nothing has been changed."""

    def __init__(self, segment: str, offset: int, reason: str) -> None:
        super().__init__(f"{segment}: offset {offset}: {reason}")
        self.segment = segment
        self.offset = offset
        self.reason = reason


class StoreCorrupt(CorruptionError):
    """The commitment store at `segment` can't be read, or contradicts itself."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, 0, reason)
        self.args = (f"{path}: {reason}; `journal commitments rebuild` can rebuild it",)


class InvariantError(JournalError):
    """The code contradicts itself."""


class RequestError(JournalError):
    """A client's request can't be honoured; nothing was written."""


class InvalidBody(RequestError):
    """The body is not decodable in its content type, or is nested too deeply."""


@dataclass(frozen=True, slots=True)
class EntryFault:
    """One rule that one entry breaks: `entry` is its index, `path` the field within it."""

    entry: int
    path: str
    message: str


class InvalidEntries(RequestError):
    """At least one entry breaks a rule of the protocol's section 3."""

    def __init__(self, message: str, faults: tuple[EntryFault, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


class TooManyEntries(RequestError):
    """The request carries more entries than `MAX_ENTRIES`."""


class TooManyValues(RequestError):
    """The body holds so many values, or so much wide text, that it would be too large decoded."""


class RequestConflict(RequestError):
    """A `request_uuid` was used before, or twice in this request, with other content."""

    def __init__(self, message: str, faults: tuple[EntryFault, ...]) -> None:
        super().__init__(message)
        self.faults = faults


class Unavailable(RequestError):
    """Not now: the queue is full, there are no file descriptors, or it is starting or ending."""

    def __init__(self, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
