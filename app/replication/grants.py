"""The least that the service's role needs in Postgres, as SQL for the owner of the schema.

The service adds rows, and reads them. Three tables hold what is true now, and are updated, their
keys excepted. It deletes nothing, truncates nothing and makes no tables, save a temporary one.
"""

from typing import Final

from sqlalchemy import Table

from app.replication.schema import (
    account_balances,
    metadata,
    replication_progress,
    rsm_current_state,
)

_UPDATED: Final = (account_balances, replication_progress, rsm_current_state)
# Not of the declared schema: Alembic keeps it.
_REVISION_TABLE: Final = "alembic_version"


def script(role: str) -> str:
    """The grants for psql, in a transaction of their own."""
    lines = [
        "-- Run by the owner of the schema, in the journal's database, after `journal migrate`.",
        f"-- The role is made once: CREATE ROLE {quoted(role)} LOGIN PASSWORD '…';",
        "BEGIN;",
        grants(role),
        "COMMIT;",
    ]
    return "\n".join(lines)


def grants(role: str) -> str:
    """The statements; they may be run again, and after every `journal migrate`."""
    to = quoted(role)
    literal = "'" + role.replace("'", "''") + "'"
    tables = ", ".join(table.name for table in metadata.sorted_tables)
    lines = [
        "DO $$ BEGIN EXECUTE format(",
        f"    'GRANT CONNECT, TEMPORARY ON DATABASE %I TO %I', current_database(), {literal});",
        "END $$;",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC;",
        f"GRANT USAGE ON SCHEMA public TO {to};",
        f"GRANT SELECT ON {_REVISION_TABLE} TO {to};",
        f"GRANT SELECT, INSERT ON {tables} TO {to};",
        *(f"GRANT UPDATE ({_updated(table)}) ON {table.name} TO {to};" for table in _UPDATED),
    ]
    return "\n".join(lines)


def quoted(role: str) -> str:
    """The role's name as SQL has it."""
    return '"' + role.replace('"', '""') + '"'


def _updated(table: Table) -> str:
    return ", ".join(column.name for column in table.columns if not column.primary_key)
