"""What the way to ready costs is mostly imports: what they don't need, they don't load."""

import subprocess
import sys

# Slow ones, each of which another process or another command needs.
MIGRATIONS = {"alembic", "sqlalchemy", "mako"}
CLIENT = {"httpx", "rich", "pygments"}
KEYSTORES = {"eth_account", "coincurve"}
BULK = {"numba", "numpy"}


def loaded_by(program: str) -> set[str]:
    program += "; import sys; print(*(name.split('.')[0] for name in sys.modules))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


def test_the_service_loads_neither_migrations_nor_a_client_nor_keystores() -> None:
    loaded = loaded_by("import app.cli.operator, app.server")
    assert {"granian", "fastapi", "rocksdict"} <= loaded
    assert not loaded & (MIGRATIONS | CLIENT | KEYSTORES | BULK)


def test_the_replication_process_loads_what_it_needs_for_a_connection_alone() -> None:
    loaded = loaded_by("import app.replication.process")
    assert "asyncpg" in loaded
    assert not loaded & (MIGRATIONS | {"pydantic", "fastapi", "granian"})


def test_the_command_line_loads_the_command_that_is_asked_for() -> None:
    program = "from app.cli import main; main(['{}', '--help'], standalone_mode=False)"
    assert not loaded_by(program.format("serve")) & (MIGRATIONS | CLIENT | KEYSTORES)
    client = loaded_by(program.format("checkpoint"))
    assert "httpx" in client
    assert not client & ({"pydantic", "granian", "fastapi"} | MIGRATIONS | KEYSTORES)
