"""Runs the migrations over asyncpg, with the connection options of the service.

The database is `config.attributes["dsn"]`, or else that of the settings. All revisions of one run
are one transaction, under an advisory lock: of several migrators at once, the first migrates and
the others find nothing left to do. Logging is left as the caller set it up.
"""

import asyncio

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.errors import SettingsError
from app.replication.connection import MIGRATION_LIMITS, MIGRATION_LOCK, open_connection
from app.replication.schema import metadata
from app.settings import load_settings


def _dsn() -> str:
    dsn = context.config.attributes.get("dsn")
    if isinstance(dsn, str):
        return dsn
    settings = load_settings()
    if settings.embedded:
        raise SettingsError(
            f"JOURNAL_DATABASE_URL={settings.database_url!r}: the URI of a running database is "
            "needed here; `journal migrate` starts the embedded one"
        )
    return settings.database_url


def _migrate(connection: Connection) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
    context.configure(connection=connection, target_metadata=metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


async def _migrate_online(dsn: str) -> None:
    async def connect() -> asyncpg.Connection:
        return await open_connection(dsn, "journal-migrate", MIGRATION_LIMITS)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
    finally:
        await engine.dispose()


def _migrate_offline() -> None:
    context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    _migrate_offline()
else:
    asyncio.run(_migrate_online(_dsn()))
