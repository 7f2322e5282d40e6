"""The service's role in Postgres: made where it is missing, with its password and its grants.

`give` blocks, and runs an event loop of its own, as the migrations do.
"""

import asyncio
import hmac
import secrets
from base64 import b64encode
from hashlib import pbkdf2_hmac, sha256
from typing import Final

import asyncpg

from app.errors import DatabaseUnavailable, SettingsError
from app.replication.connection import (
    MIGRATION_LIMITS,
    MIGRATION_LOCK,
    Connection,
    open_connection,
    translated,
)
from app.replication.grants import grants, quoted

_SCRAM_ITERATIONS: Final = 4096
_SALT_BYTES: Final = 16
_EXISTS: Final = "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)"
_ACTS_AS_OWNER: Final = """
SELECT pg_has_role(rolname, relowner, 'MEMBER') FROM pg_roles, pg_class
WHERE rolname = $1 AND pg_class.oid = 'public.alembic_version'::regclass
"""


def give(dsn: str, role: str, password: str | None) -> None:
    """Give `role` what the service needs, all or nothing; `dsn` is that of the schema's owner.

    Without a `password` the role keeps the one that it has, if any. Raises `SettingsError` for a
    role that may act as the owner, whom no grants hold back; `DatabaseUnavailable`.
    """
    asyncio.run(_give(dsn, role, password))


async def _give(dsn: str, role: str, password: str | None) -> None:
    connection = await open_connection(dsn, "journal-migrate", MIGRATION_LIMITS)
    try:
        with translated(f"granting to the role {role!r}"):
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
                await _make(connection, role, password)
                await _grant(connection, role)
    finally:
        await connection.close(timeout=5)


async def _make(connection: Connection, role: str, password: str | None) -> None:
    if not await connection.fetchval(_EXISTS, role):
        await connection.execute(f"CREATE ROLE {quoted(role)} LOGIN")
    if await connection.fetchval(_ACTS_AS_OWNER, role):
        raise SettingsError(
            f"--grant-to={role!r}: it is a superuser, or may act as the owner of the schema; a "
            "role of the service's own is allowed"
        )
    if password is not None:
        verifier = scram_verifier(password)
        await connection.execute(f"ALTER ROLE {quoted(role)} PASSWORD '{verifier}'")


async def _grant(connection: Connection, role: str) -> None:
    # Postgres only warns of what somebody else than the owner can't grant.
    warnings: list[str] = []

    def note(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            warnings.append(message.message or "a warning")

    connection.add_log_listener(note)
    await connection.execute(grants(role))
    if warnings:
        raise DatabaseUnavailable(
            f"granting to the role {role!r}: {warnings[0]}: is this the owner of the schema?"
        )


def scram_verifier(password: str) -> str:
    """What Postgres keeps of a password of printable ASCII (RFC 5802, RFC 5803).

    Sent in its place, so that no log of statements has the password.
    """
    salt = secrets.token_bytes(_SALT_BYTES)
    salted = pbkdf2_hmac("sha256", password.encode("ascii"), salt, _SCRAM_ITERATIONS)
    stored_key = sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return "SCRAM-SHA-256${}:{}${}:{}".format(_SCRAM_ITERATIONS, *encoded)
