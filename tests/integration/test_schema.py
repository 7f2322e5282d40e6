"""The migrations make exactly the declared schema, from any state, by any number of callers."""

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.errors import DatabaseUnavailable
from app.replication import migrations, rows
from app.replication.schema import metadata
from tests.support.postgres_cluster import Cluster

ROOT = Path(__file__).parents[2]
SHAPES = """
SELECT 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
  AND NOT a.attisdropped AND c.relname <> 'alembic_version'
UNION ALL
SELECT 'constraint', c.relname, o.conname, pg_get_constraintdef(o.oid), '', ''
FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname <> 'alembic_version'
UNION ALL
SELECT 'index', tablename, indexname, indexdef, '', ''
FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
ORDER BY 1, 2, 3
"""


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, metadata))


async def with_sqlalchemy(url: str, work: Any) -> Any:
    async def connect() -> Any:
        return await asyncpg.connect(url)

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def revision(url: str) -> str | None:
    connection = await asyncpg.connect(url)
    try:
        return await migrations.current_revision(connection)
    finally:
        await connection.close()


async def test_migrated_schema_equals_the_metadata(database_url: str) -> None:
    assert await with_sqlalchemy(database_url, differences) == []


@pytest.mark.parametrize(
    "damage",
    [
        "ALTER TABLE engine_events DROP COLUMN l2_sequence",
        "ALTER TABLE engine_commands ALTER COLUMN duration_ms TYPE integer",
        "ALTER TABLE balance_updates ALTER COLUMN reference_id SET NOT NULL",
        "DROP INDEX engine_events_environment_event_topic_command_id_event_idx_idx",
        "ALTER TABLE directive_outbox ALTER COLUMN status DROP DEFAULT",
        "DROP TABLE dead_letters",
    ],
)
async def test_comparison_notices_a_schema_that_differs(database_url: str, damage: str) -> None:
    await execute(database_url, damage)
    assert await with_sqlalchemy(database_url, differences) != []


async def test_migrations_make_what_the_metadata_would_make(
    database_url: str, empty_database_url: str
) -> None:
    """Includes what the comparison above does not look at: primary keys, checks and names."""
    await with_sqlalchemy(empty_database_url, metadata.create_all)
    assert await execute(database_url, SHAPES) == await execute(empty_database_url, SHAPES)


async def test_upgrade_downgrade_upgrade(empty_database_url: str) -> None:
    url = empty_database_url
    assert await revision(url) is None
    await asyncio.to_thread(migrations.upgrade, url)
    assert await revision(url) == migrations.head_revision()
    before = await execute(url, SHAPES)
    await asyncio.to_thread(migrations.downgrade, url, "base")
    assert await revision(url) is None
    assert await execute(url, SHAPES) == []
    await asyncio.to_thread(migrations.upgrade, url)
    assert await execute(url, SHAPES) == before


async def test_concurrent_migrators_all_succeed(empty_database_url: str) -> None:
    code = "import sys; from app.replication import migrations; migrations.upgrade(sys.argv[1])"
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, empty_database_url, cwd=ROOT
        )
        for _ in range(3)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await revision(empty_database_url) == migrations.head_revision()


async def test_upgrading_leaves_logging_alone(empty_database_url: str) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("app.wal").disabled)
    await asyncio.to_thread(migrations.upgrade, empty_database_url)
    assert (root.level, list(root.handlers), logging.getLogger("app.wal").disabled) == before


async def test_a_newer_database_is_reported_not_migrated(database_url: str) -> None:
    await execute(database_url, "UPDATE alembic_version SET version_num = 'from-the-future'")
    with pytest.raises(DatabaseUnavailable, match="from-the-future"):
        await asyncio.to_thread(migrations.upgrade, database_url)


async def test_an_unreachable_database_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="connecting"):
        await asyncio.to_thread(migrations.upgrade, f"postgresql:///x?host={tmp_path}")


@pytest.mark.parametrize(
    "launch", [["-m", "alembic"], ["-c", "from alembic.config import main; main()"]]
)
def test_the_command_line_takes_the_url_of_the_service(
    cluster: Cluster, empty_database_url: str, launch: list[str]
) -> None:
    """Run in the project's root, where the folder `alembic` must not hide the package."""
    command = (
        [sys.executable, *launch, "current"] if launch[0] == "-m" else [sys.executable, *launch]
    )
    arguments = [] if launch[0] == "-m" else ["current"]
    ended = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env={"JOURNAL_DATABASE_URL": empty_database_url, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


def test_the_command_line_refuses_the_embedded_database() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "alembic", "upgrade", "head"],
        cwd=ROOT,
        env={},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "JOURNAL_DATABASE_URL='embedded'" in ended.stderr


@pytest.mark.parametrize(
    ("table", "columns"),
    [("engine_commands", rows.COMMAND_COLUMNS)],
)
def test_copied_columns_are_the_declared_ones(table: str, columns: tuple[str, ...]) -> None:
    assert columns == tuple(column.name for column in metadata.tables[table].columns)


def test_every_table_is_keyed_by_environment_first() -> None:
    for table in metadata.tables.values():
        assert next(iter(table.primary_key.columns)).name == "environment"
        for index in table.indexes:
            assert next(iter(index.columns)).name == "environment"
