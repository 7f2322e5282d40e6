"""Commands of the operator: run the service, migrate its database, adopt a journal."""

import os
from typing import Final

import click

from app.cli.options import database_of, given, settings_of, settings_options
from app.environment import ROLE_PASSWORD_VARIABLE
from app.errors import SettingsError
from app.settings import load_settings, setting_name

# NAMEDATALEN - 1: Postgres would cut a longer name.
_MAX_ROLE_BYTES: Final = 63


@click.command()
@settings_options()
@click.pass_context
def serve(ctx: click.Context, /, **options: str | bool | None) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Every option is a setting; it overrides the environment variable that is named with it. A value
    that is not allowed ends the start with one line and exit code 2. On SIGTERM what is waiting
    becomes durable and is acknowledged, and replication drains, at most --shutdown-timeout-s.
    """
    overrides = given(options)
    settings = load_settings(**overrides)
    # The service's processes read their settings from the environment they inherit.
    os.environ.update({setting_name(name): value for name, value in overrides.items()})
    from app.service.interpreter import collect_rarely  # noqa: PLC0415 - loads ctypes

    collect_rarely()
    from app import server  # noqa: PLC0415 - loads the whole service; no other command needs it

    ctx.exit(server.run(settings))


@click.command()
@settings_options("database_url", "data_dir")
@click.option(
    "--print-grants",
    metavar="ROLE",
    help="Only print the SQL that gives ROLE what the service needs, and nothing else.",
)
@click.option(
    "--grant-to",
    metavar="ROLE",
    help="Afterwards execute that SQL as well; makes ROLE where it is missing. "
    f"[env: {ROLE_PASSWORD_VARIABLE} has the password that it gets]",
)
def migrate(print_grants: str | None, grant_to: str | None, **options: str | bool | None) -> None:
    """Bring the database to the schema that this version needs.

    Nothing happens where it is there already. The embedded database is started for the time, unless
    it runs.

    The service itself needs less than the schema's owner: run as the owner, `journal migrate
    --grant-to journal` gives the role `journal` what it needs, this time and after every upgrade.
    """
    if print_grants is not None:
        if grant_to is not None:
            raise SettingsError("--print-grants and --grant-to: one of both is allowed")
        from app.replication.grants import script  # noqa: PLC0415 - loads SQLAlchemy

        click.echo(script(print_grants))
        return
    password = None if grant_to is None else _password_for(grant_to)
    from app.replication.migrations import upgrade  # noqa: PLC0415 - loads asyncpg
    from app.replication.roles import give  # noqa: PLC0415 - likewise

    with database_of(settings_of(options)) as database_url:
        upgrade(database_url)
        click.echo("the database is up to date")
        if grant_to is not None:
            give(database_url, grant_to, password)
            click.echo(f"the role {grant_to!r} has what the service needs")


@click.command()
@settings_options("data_dir", "database_url", "environment")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(yes: bool, **options: str | bool | None) -> None:
    """Begin a new WAL behind what Postgres holds, after the disk of the old one was lost.

    Entries that were acknowledged but had not reached Postgres are lost for good. Never do this
    while the old WAL can still be had: start the service on it instead.
    """
    settings = settings_of(options)
    if not yes:
        click.confirm(
            f"Acknowledged entries of {settings.environment!r} that never reached Postgres are "
            "lost for good. Go on?",
            abort=True,
        )
    from app import adopt as adoption  # noqa: PLC0415 - loads the whole service

    with database_of(settings) as database_url:
        click.echo(adoption.run(settings, database_url))


def _password_for(role: str) -> str | None:
    """What the role gets as its password, if anything. Raises `SettingsError`."""
    if not (role.isprintable() and 1 <= len(role.encode()) <= _MAX_ROLE_BYTES):
        raise SettingsError(
            f"--grant-to={role!r}: a name of 1 to {_MAX_ROLE_BYTES} printable bytes is allowed"
        )
    password = os.environ.get(ROLE_PASSWORD_VARIABLE)
    # Of other characters Postgres has several spellings.
    if password is not None and not (password and password.isascii() and password.isprintable()):
        raise SettingsError(
            f"{ROLE_PASSWORD_VARIABLE}: it is empty, or has other characters than printable ASCII; "
            "a password of these alone is allowed"
        )
    return password
