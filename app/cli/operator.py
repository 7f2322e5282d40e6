"""Commands of the operator: run the service, migrate its database, adopt a journal."""

import os

import click

from app.cli.options import database_of, given, settings_options
from app.settings import load_settings, setting_name


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
    from app.service.interpreter import collect_rarely  # noqa: PLC0415 - loads what hashes

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
def migrate(print_grants: str | None, **options: str | bool | None) -> None:
    """Bring the database to the schema that this version needs.

    Nothing happens where it is there already. The embedded database is started for the time, unless
    it runs.

    The service itself needs less than the schema's owner: `journal migrate --print-grants journal |
    psql …` gives the role `journal` what it needs.
    """
    if print_grants is not None:
        from app.replication.grants import grants  # noqa: PLC0415 - loads SQLAlchemy

        click.echo(grants(print_grants))
        return
    from app.replication.migrations import upgrade  # noqa: PLC0415 - loads asyncpg

    with database_of(load_settings(**given(options))) as database_url:
        upgrade(database_url)
    click.echo("the database is up to date")


@click.command()
@settings_options("data_dir", "database_url", "environment")
@click.option("--yes", is_flag=True, help="Do not ask.")
def adopt(yes: bool, **options: str | bool | None) -> None:
    """Begin a new WAL behind what Postgres holds, after the disk of the old one was lost.

    Entries that were acknowledged but had not reached Postgres are lost for good. Never do this
    while the old WAL can still be had: start the service on it instead.
    """
    settings = load_settings(**given(options))
    if not yes:
        click.confirm(
            f"Acknowledged entries of {settings.environment!r} that never reached Postgres are "
            "lost for good. Go on?",
            abort=True,
        )
    from app import adopt as adoption  # noqa: PLC0415 - loads the whole service

    with database_of(settings) as database_url:
        click.echo(adoption.run(settings, database_url))
