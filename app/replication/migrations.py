"""Alembic from within the service: the same scripts as the command line, on any libpq URI.

`upgrade` and `downgrade` block, and run an event loop of their own: call them from a thread that
has none. Alembic and SQLAlchemy are loaded when they are called for, not with every process.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.errors import DatabaseUnavailable, InvariantError
from app.replication.connection import Connection, describe, translated

if TYPE_CHECKING:
    from alembic.config import Config

# Within the package once that is built, at the top of the project tree before.
_SCRIPT_PLACES: Final = (
    Path(__file__).parent / "alembic",
    Path(__file__).parents[2] / "alembic",
)


def upgrade(dsn: str, revision: str = "head") -> None:
    """Bring the database to `revision`, where it is not there yet.

    Any number of callers may do so at once. Raises `DatabaseUnavailable`.
    """
    _run(dsn, "upgrading", revision)


def downgrade(dsn: str, revision: str) -> None:
    """Take the database back to `revision` ("base": to nothing). Raises `DatabaseUnavailable`."""
    _run(dsn, "downgrading", revision)


@cache
def head_revision() -> str:
    """The revision that this version of the code needs."""
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - when called for

    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise InvariantError("there are no migrations")
    return head


async def current_revision(connection: Connection) -> str | None:
    """The revision that the database has, or None before its first migration."""
    if await connection.fetchval("SELECT to_regclass('public.alembic_version')") is None:
        return None
    revision: str | None = await connection.fetchval(
        "SELECT version_num FROM public.alembic_version"
    )
    return revision


def _config() -> "Config":
    from alembic.config import Config  # noqa: PLC0415 - when called for

    for place in _SCRIPT_PLACES:
        if (place / "env.py").is_file():
            config = Config()
            config.set_main_option("script_location", str(place).replace("%", "%%"))
            return config
    raise InvariantError(f"no migrations at {' or '.join(map(str, _SCRIPT_PLACES))}")


def _run(dsn: str, doing: str, revision: str) -> None:
    from alembic import command  # noqa: PLC0415 - when called for
    from alembic.util import CommandError  # noqa: PLC0415 - when called for
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - when called for

    config = _config()
    config.attributes["dsn"] = dsn
    step = command.upgrade if doing == "upgrading" else command.downgrade
    with translated(f"{doing} the schema"):
        try:
            step(config, revision)
        except (SQLAlchemyError, CommandError) as error:
            raise DatabaseUnavailable(f"{doing} the schema: {describe(error)}") from error
