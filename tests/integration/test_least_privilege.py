"""The service under exactly the role that `journal migrate --print-grants` makes."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.client import JournalClient
from app.errors import DatabaseUnavailable
from app.model.entry import Entry
from app.replication.postgres import Sink
from tests.integration.conftest import MakeService
from tests.support.block_chain import BlockChain
from tests.support.database import query, value
from tests.support.http_entries import checkpoint, flush
from tests.support.journal_entries import make_entry, make_full_entry, make_update
from tests.support.postgres_cluster import Cluster, in_thread
from tests.support.replicated_blocks import apply, tick
from tests.support.replication_sink import ENVIRONMENT

_PASSWORD = "grants"
# A name that only works quoted.
_TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
_TABLE_PRIVILEGES = """
SELECT table_name, privilege_type FROM information_schema.table_privileges WHERE grantee = $1
"""
_UPDATED_COLUMNS = """
SELECT table_name, column_name FROM information_schema.column_privileges
WHERE grantee = $1 AND privilege_type = 'UPDATE'
"""
_PASSWORD_OF = "SELECT rolpassword FROM pg_authid WHERE rolname = $1"
_ROLE = 'journal\'s "least" {}'


class Role(NamedTuple):
    """A login of the test's own, and the test's database as it sees it."""

    name: str
    url: str


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def run(url: str, *statements: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    in_thread(execute())


@pytest.fixture
def role(cluster: Cluster, database_url: str) -> Iterator[Role]:
    name = _ROLE.format(uuid4().hex[:8])
    identifier = quoted(name)
    run(cluster.url, f"CREATE ROLE {identifier} LOGIN PASSWORD '{_PASSWORD}'")
    result = journal("migrate", "--print-grants", name)
    run(database_url, result.stdout)
    parts = urlsplit(database_url)
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{quote(name, safe='')}:{_PASSWORD}@{host}"
    yield Role(name, urlunsplit(parts._replace(netloc=netloc)))
    run(database_url, f"DROP OWNED BY {identifier}")
    run(cluster.url, f"DROP ROLE {identifier}")


def journal(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def grant_to(url: str, name: str, **environ: str) -> Result:
    arguments = ["migrate", "--database-url", url, "--grant-to", name]
    return CliRunner(env=environ).invoke(main, arguments)


def append(url: str, *entries: Entry) -> None:
    async def call() -> None:
        async with JournalClient(url) as client:
            await client.append(entries)

    asyncio.run(call())


def test_the_service_does_all_its_work_under_the_printed_grants(
    make_service: MakeService, role: Role, database_url: str, tmp_path: Path
) -> None:
    """Every table is written, what moves is moved, and a lost log is adopted."""
    service = make_service(role.url, AUTO_MIGRATE="false", BLOCK_COMMANDS="*", DEDUP_WINDOW=1)
    service.start()
    full = make_full_entry()
    # Twice what is updated, and an entry that comes again when only Postgres knows it.
    append(service.url, full, make_entry(balance_updates=[make_update(0, 5, "9")]))
    append(service.url, make_full_entry(balance_updates=[make_update(0, 5, "10")]))
    with service.client() as client:
        flush(client)
    append(service.url, full)
    with service.client() as client:
        flush(client)
        assert checkpoint(client)["replication"] == "streaming"
        assert client.get(f"/entries/{full.request_uuid}").json()["status"] == "replicated"
        assert client.get("/blocks/0/commands?content=true").status_code == 200
    assert service.terminate() == 0

    assert value(database_url, "SELECT count(*) FROM engine_commands") == 3
    for table in ("rsm_blocks", "rsm_roots", "directive_outbox", "account_balances"):
        assert value(database_url, f"SELECT count(*) FROM {table}") > 0
    assert value(database_url, "SELECT max(balance_after) FROM account_balances") >= 10
    verified = journal("verify", role.url, "--allow-unsigned", "--environment", "development")
    assert "verified up to block" in verified.output
    adopted = journal(
        "adopt", "--yes", "--database-url", role.url, "--data-dir", tmp_path / "adopted"
    )
    assert "began the log" in adopted.output


def test_the_role_can_not_change_history_nor_the_schema(role: Role) -> None:
    for statement in (
        "DELETE FROM engine_commands",
        "TRUNCATE rsm_blocks",
        "UPDATE engine_commands SET command_data = ''",
        "UPDATE rsm_blocks SET block_hash = ''",
        "UPDATE account_balances SET environment = 'other'",
        "DELETE FROM account_balances",
        "UPDATE alembic_version SET version_num = '9'",
        "CREATE TABLE mine ()",
        "ALTER TABLE engine_commands DISABLE TRIGGER ALL",
        "DROP TABLE dead_letters",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            query(role.url, statement)


def test_the_role_can_add_and_read_and_changes_only_what_is_true_now(
    role: Role, database_url: str
) -> None:
    tables = {table for (table,) in query(database_url, _TABLES)}
    granted = query(database_url, _TABLE_PRIVILEGES, role.name)
    assert {table for table, _ in granted} == tables
    expected = {(table, each) for table in tables for each in ("INSERT", "SELECT")}
    assert set(granted) == expected - {("alembic_version", "INSERT")}
    updated: dict[str, set[str]] = {}
    for table, column in query(database_url, _UPDATED_COLUMNS, role.name):
        updated.setdefault(table, set()).add(column)
    keys = {"environment", "user_address", "account_id", "currency"}
    assert updated.keys() == {"account_balances", "replication_progress", "rsm_current_state"}
    for columns in updated.values():
        assert columns
        assert columns.isdisjoint(keys)


def test_grant_to_gives_exactly_what_is_printed_to_a_role_that_it_makes(
    cluster: Cluster, role: Role, database_url: str
) -> None:
    made = _ROLE.format(uuid4().hex[:8])
    try:
        for _ in range(2):
            journal("migrate", "--database-url", database_url, "--grant-to", made)
        for privileges in (_TABLE_PRIVILEGES, _UPDATED_COLUMNS):
            expected = set(query(database_url, privileges, role.name))
            assert set(query(database_url, privileges, made)) == expected
        assert value(cluster.url, "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", made)
    finally:
        run(database_url, f"DROP OWNED BY {quoted(made)}")
        run(cluster.url, f"DROP ROLE {quoted(made)}")


@pytest.mark.parametrize("is_owner", [True, False], ids=["the owner", "a member of it"])
def test_a_role_that_grants_do_not_hold_back_is_refused_and_keeps_its_password(
    cluster: Cluster, role: Role, database_url: str, is_owner: bool
) -> None:
    owner: str = value(database_url, "SELECT current_user")
    run(cluster.url, f"GRANT {quoted(owner)} TO {quoted(role.name)}")
    name = owner if is_owner else role.name
    before = value(cluster.url, _PASSWORD_OF, name)
    result = grant_to(database_url, name, JOURNAL_ROLE_PASSWORD="another")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"journal: --grant-to={name!r}: it is a superuser, or may act")
    assert result.stderr.count("\n") == 1
    assert value(cluster.url, _PASSWORD_OF, name) == before


def test_what_is_not_the_owner_s_to_grant_is_no_success_and_leaves_no_role(
    cluster: Cluster, role: Role
) -> None:
    run(cluster.url, f"ALTER ROLE {quoted(role.name)} CREATEROLE")
    result = grant_to(role.url, "left behind")
    assert result.exit_code == 1
    assert result.stderr.startswith("journal: granting to the role 'left behind': no privileges")
    assert result.stderr.count("\n") == 1
    assert not query(cluster.url, "SELECT FROM pg_roles WHERE rolname = 'left behind'")


@pytest.mark.parametrize("table", ["account_balances", "replication_progress", "rsm_current_state"])
async def test_no_grant_of_an_update_could_be_left_out(
    role: Role, observer: Any, chain: BlockChain, table: str
) -> None:
    first, second = (
        chain.batch(tick(balance_updates=[make_update(number, 5, "1")])) for number in range(2)
    )
    sink = await Sink.connect(role.url, ENVIRONMENT)
    progress = await apply(sink, first)
    await observer.execute(f"REVOKE UPDATE ON {table} FROM {quoted(role.name)}")
    with pytest.raises(DatabaseUnavailable, match=f"permission denied for table {table}"):
        await apply(sink, second, after=progress)
    await sink.close()
