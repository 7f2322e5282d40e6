"""Errors as RFC 9457 problem documents: the one table from exception to status, code and title."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.errors import (
    DatabaseUnavailable,
    DiskFull,
    InvalidBody,
    InvalidEntries,
    RequestConflict,
    StoreFailed,
    StoreFull,
    TooManyEntries,
    TooManyValues,
    Unavailable,
    shortened,
)

PROBLEM_JSON: Final = "application/problem+json"
_TYPE_PREFIX: Final = "urn:journal:problem:"


class HttpProblem(Exception):
    """An error that only exists in HTTP: `status`, `reason` (a short name) and the detail."""

    def __init__(
        self, status: int, reason: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = dict(headers or {})


def body_too_large(max_body_bytes: int) -> HttpProblem:
    """The refusal of a body that is over its limit."""
    return HttpProblem(413, "body_too_large", f"the body is larger than {max_body_bytes} bytes")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem. `number` makes the `error_code`: status × 100 + number."""

    status: int
    number: int
    reason: str
    title: str
    retriable: bool = False

    @property
    def error_code(self) -> int:
        """The code, as Kafka's REST proxy counts them."""
        return self.status * 100 + self.number


_KINDS: Final = (
    Kind(400, 1, "undecodable_body", "The body can't be decoded"),
    Kind(401, 1, "token_missing", "A token is needed"),
    Kind(401, 2, "token_invalid", "The token is not known"),
    Kind(401, 3, "token_expired", "The token has expired"),
    Kind(403, 1, "scope_missing", "The token does not allow this"),
    Kind(403, 2, "not_local", "Other machines need a token"),
    Kind(400, 2, "incomplete_body", "The body did not arrive", retriable=True),
    Kind(404, 1, "not_found", "There is no such resource"),
    Kind(404, 2, "unknown_entry", "No entry has this request_uuid"),
    Kind(404, 3, "no_block", "There is no such block"),
    Kind(404, 4, "not_in_a_block", "No block covers the entry"),
    Kind(404, 5, "not_in_the_log_yet", "The block is older than the command"),
    Kind(405, 1, "method_not_allowed", "The resource does not know this method"),
    Kind(406, 1, "not_acceptable", "The answer can't be given in an accepted type"),
    Kind(408, 1, "body_timeout", "The body did not arrive in time", retriable=True),
    Kind(409, 1, "request_conflict", "A request_uuid was used before with other content"),
    Kind(413, 1, "body_too_large", "The body is too large"),
    Kind(413, 2, "too_many_entries", "The request holds too many entries"),
    Kind(413, 3, "too_many_values", "The request holds too many values"),
    Kind(415, 1, "unsupported_media_type", "The content type is not supported"),
    Kind(415, 2, "unsupported_encoding", "The content encoding is not supported"),
    Kind(422, 1, "invalid_entries", "An entry breaks a rule"),
    Kind(422, 2, "invalid_parameter", "A parameter is not valid"),
    Kind(429, 1, "over_quota", "The token's quota is used up", retriable=True),
    Kind(500, 1, "internal_error", "The service failed"),
    Kind(503, 1, "unavailable", "The service can't take this now", retriable=True),
    Kind(
        503,
        2,
        "database_unavailable",
        "Only Postgres could tell, and it is not there",
        retriable=True,
    ),
    Kind(503, 3, "store_unavailable", "Blocks can't be read now", retriable=True),
    Kind(503, 4, "content_unavailable", "Neither log nor Postgres has the content", retriable=True),
    Kind(504, 1, "flush_timeout", "The flush did not finish in time", retriable=True),
    Kind(507, 1, "disk_full", "There is no room for the log", retriable=True),
)
KINDS: Final[Mapping[str, Kind]] = {kind.reason: kind for kind in _KINDS}
# What each status may mean, for the documentation.
TITLES: Final[Mapping[int, str]] = {
    status: "; ".join(kind.title for kind in _KINDS if kind.status == status)
    for status in {kind.status for kind in _KINDS}
}

_BY_EXCEPTION: Final[Mapping[type[Exception], str]] = {
    InvalidBody: "undecodable_body",
    InvalidEntries: "invalid_entries",
    TooManyEntries: "too_many_entries",
    TooManyValues: "too_many_values",
    RequestConflict: "request_conflict",
    Unavailable: "unavailable",
    DatabaseUnavailable: "database_unavailable",
    DiskFull: "disk_full",
    StoreFull: "disk_full",
    StoreFailed: "store_unavailable",
}
TRANSLATED: Final[tuple[type[Exception], ...]] = (*_BY_EXCEPTION, HttpProblem)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem document, ready to be encoded, with the status and headers it goes out with."""

    status: int
    reason: str
    headers: dict[str, str]
    document: dict[str, Any]


def problem_of(error: Exception) -> Problem:
    """The problem that an exception is; unknown ones become a bare 500 that tells nothing."""
    headers: dict[str, str] = {}
    detail = shortened(str(error))
    if isinstance(error, HttpProblem):
        kind = KINDS[error.reason]
        headers = error.headers
    elif type(error) in _BY_EXCEPTION:
        kind = KINDS[_BY_EXCEPTION[type(error)]]
    else:
        kind, detail = KINDS["internal_error"], "an internal error; see the log of the service"
    if kind.status == 503:
        retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else 1
        headers = {"retry-after": str(retry_after_s)}
    document: dict[str, Any] = {
        "type": _TYPE_PREFIX + kind.reason,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "error_code": kind.error_code,
        "message": detail,
        "retriable": kind.retriable,
    }
    if isinstance(error, InvalidEntries | RequestConflict) and error.faults:
        document["errors"] = [
            {
                "entry": fault.entry,
                "path": shortened(fault.path),
                "message": shortened(fault.message),
            }
            for fault in error.faults
        ]
    return Problem(kind.status, kind.reason, headers, document)
