"""Connections to Postgres, and the boundary where the driver's errors become the project's own.

Two questions are asked about an error. Is it about the content of a row (SQLSTATE classes 22, 23
and 54, or a value that the driver can't even encode)? Then trying again is pointless and
`is_content_error` says so. Everything else is `DatabaseUnavailable`, to be tried again with
back-off, except where Postgres holds what the WAL says it can't: `ReplicationRefused` (protocol,
section 6).
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, urlencode

import asyncpg

from app.errors import DatabaseUnavailable, JournalError, ReplicationRefused

if TYPE_CHECKING:
    # At run time the driver's class takes no parameters.
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, in seconds, a connection waits: to be made, for a statement, for a lock, idle."""

    connect_s: float
    statement_s: float
    lock_s: float
    idle_in_transaction_s: float
    # What the driver adds before it gives up by itself: a server that is gone reports no timeout.
    grace_s: float = 5


SINK_LIMITS: Final = Limits(10, 60, 10, 60)
READER_LIMITS: Final = Limits(3, 5, 3, 10)
MIGRATION_LIMITS: Final = Limits(10, 3600, 60, 3600)

# How a connection is found dead, by either side, that nothing is sent over: after half a minute.
_KEEPALIVE_IDLE_S: Final = 15
_KEEPALIVE_INTERVAL_S: Final = 5
_KEEPALIVE_COUNT: Final = 3
# The same for what is sent and never arrives.
_UNACKNOWLEDGED_MS: Final = 30_000
_CONTENT_CLASSES: Final = frozenset({"22", "23", "54"})
# A command_id is given once. That it is there already is no fault of the entry: this is another
# journal's.
_IDENTITY_CONSTRAINTS: Final = frozenset({"engine_commands_pkey", "dead_letters_pkey"})
_DRIVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)
# What the driver and the codecs raise about a value; `is_content_error` looks closer.
CONTENT_ERRORS: Final = (
    asyncpg.PostgresError,
    ValueError,
    TypeError,
    ArithmeticError,
    RecursionError,
)
# Parameters of libpq's client side. The driver would send them on to a server that does not know
# them.
_LIBPQ_CLIENT_PARAMETERS: Final = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
    }
)


def advisory_key(purpose: str, environment: str) -> int:
    """The key of a Postgres advisory lock: 64 bits, the same for every process and version."""
    name = f"journal\0{purpose}\0{environment}".encode()
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big", signed=True)


# Of several migrators of a database at once, one works and the others wait.
MIGRATION_LOCK: Final = advisory_key("migrations", "")


class JournalConnection(Connection):
    """The driver's connection, where no wait is without a limit."""

    __slots__ = ()

    async def copy_records_to_table(self, table_name: str, **arguments: Any) -> str:
        """COPY, within the limit of a statement.

        The driver (asyncpg 0.32) waits for room to send without any, and is not even woken when
        the connection is lost meanwhile.
        """
        lost = asyncio.get_running_loop().create_future()

        def notice(_: object) -> None:
            if not lost.done():
                lost.set_result(None)

        self.add_termination_listener(notice)
        copying = asyncio.ensure_future(super().copy_records_to_table(table_name, **arguments))
        try:
            await asyncio.wait(
                {copying, lost},
                timeout=self._config.command_timeout,  # type: ignore[attr-defined]
                return_when=asyncio.FIRST_COMPLETED,
            )
            if copying.done():
                return await copying
        finally:
            self.remove_termination_listener(notice)
            if not copying.done():
                # Nothing can be said over it any more; the driver would try to all the same.
                self.terminate()
                copying.cancel()
                await asyncio.gather(copying, return_exceptions=True)
        doing = f"in the middle of copying into {table_name}"
        if lost.done():
            raise ConnectionResetError(f"the connection was lost {doing}")
        raise TimeoutError(f"timed out {doing}")

    def keep_alive(self) -> None:
        """Let the kernel find out when the server, or the way to it, is gone."""
        end: socket.socket = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if end.family == socket.AF_UNIX:
            return
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE_S)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL_S)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEPALIVE_COUNT)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


async def open_connection(dsn: str, application_name: str, limits: Limits) -> Connection:
    """Connect to the libpq URI `dsn`. Raises `DatabaseUnavailable`."""
    with translated("connecting to Postgres"):
        try:
            connection: JournalConnection = await asyncpg.connect(
                **connect_options(dsn, application_name, limits)
            )
        except ValueError as error:
            # Of the URI itself, or of a file it names; OSError and the driver's own go through.
            if isinstance(error, _DRIVER_ERRORS):
                raise
            raise DatabaseUnavailable(f"DATABASE_URL is not usable: {error}") from None
        connection.keep_alive()
        return connection


def connect_options(dsn: str, application_name: str, limits: Limits) -> dict[str, Any]:
    """The arguments with which the driver connects to `dsn`, alone or in a pool."""
    uri, connect_s = _without_client_parameters(dsn)
    return {
        "dsn": uri,
        "connection_class": JournalConnection,
        "timeout": connect_s or limits.connect_s,
        "command_timeout": limits.statement_s + limits.grace_s,
        "server_settings": {
            "application_name": application_name,
            "search_path": "public",
            "synchronous_commit": "on",
            "statement_timeout": _milliseconds(limits.statement_s),
            "lock_timeout": _milliseconds(limits.lock_s),
            "idle_in_transaction_session_timeout": _milliseconds(limits.idle_in_transaction_s),
            # So that the server notices a client that is gone, and gives back its locks.
            "tcp_keepalives_idle": str(_KEEPALIVE_IDLE_S),
            "tcp_keepalives_interval": str(_KEEPALIVE_INTERVAL_S),
            "tcp_keepalives_count": str(_KEEPALIVE_COUNT),
        },
    }


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn errors of the driver into `DatabaseUnavailable` or `ReplicationRefused`."""
    try:
        yield
    except _DRIVER_ERRORS as error:
        raise _translation(doing, error) from error


def is_content_error(error: Exception) -> bool:
    """Whether `error` is about the content of a row, so that it would only happen again."""
    if isinstance(error, asyncpg.PostgresError):
        return _sqlstate(error)[:2] in _CONTENT_CLASSES and not _is_identity_error(error)
    if isinstance(error, OSError | JournalError):
        return False
    # asyncpg has two classes of this name: the one that is a ValueError is raised before anything
    # is sent.
    return isinstance(error, CONTENT_ERRORS)


def describe(error: BaseException) -> str:
    """An error as one line of text: its class and what it says."""
    message = " ".join(str(error).split())
    if not message and isinstance(error, TimeoutError):
        message = "timed out"
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _translation(doing: str, error: BaseException) -> JournalError:
    if isinstance(error, asyncpg.PostgresError) and _is_identity_error(error):
        return ReplicationRefused(
            f"{doing}: Postgres already holds another entry under a command_id of this WAL "
            f"({describe(error)})"
        )
    return DatabaseUnavailable(f"{doing}: {describe(error)}")


def _is_identity_error(error: asyncpg.PostgresError) -> bool:
    return getattr(error, "constraint_name", None) in _IDENTITY_CONSTRAINTS


def _sqlstate(error: asyncpg.PostgresError) -> str:
    return getattr(error, "sqlstate", None) or ""


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error that Postgres reported, else None."""
    return _sqlstate(error) or None if isinstance(error, asyncpg.PostgresError) else None


def _without_client_parameters(dsn: str) -> tuple[str, float | None]:
    """`dsn` without what only libpq understands, and its `connect_timeout`, in seconds."""
    base, _, query = dsn.partition("?")
    if not query:
        return dsn, None
    pairs = parse_qsl(query, keep_blank_values=True)
    asked = dict(pairs).get("connect_timeout", "")
    kept = [(name, value) for name, value in pairs if name not in _LIBPQ_CLIENT_PARAMETERS]
    uri = f"{base}?{urlencode(kept, quote_via=quote)}" if kept else base
    return uri, float(asked) if asked.isdecimal() and int(asked) > 0 else None


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))
