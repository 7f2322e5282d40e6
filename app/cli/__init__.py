"""The command line, `journal`. Errors become one line on standard error and an exit code here.

0: done. 1: refused, failed or given up. 2: a setting or an argument is not allowed. 130: Ctrl-C.
"""

import os
from importlib import import_module
from typing import Any, Final

import click

from app.errors import JournalError, SettingsError

# What a command makes, with whatever library, is its user's alone.
_PRIVATE_UMASK: Final = 0o077
# Each command, and the module that holds it under its name.
_COMMANDS: Final = {
    "adopt": "operator",
    "checkpoint": "requests",
    "commitments": "commitments",
    "flush": "requests",
    "keys": "keys",
    "migrate": "operator",
    "post": "requests",
    "replay": "replaying",
    "serve": "operator",
    "tokens": "tokens",
    "verify": "verify",
    "wal": "wal",
}


class _Journal(click.Group):
    """The group that turns the project's errors into one line and an exit code.

    A command is loaded when it is asked for: `serve` needs nothing of the others.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's
        return sorted(_COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"app.cli.{_COMMANDS[cmd_name]}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except JournalError as error:
            click.echo(f"journal: {' '.join(str(error).split())}", err=True)
            ctx.exit(2 if isinstance(error, SettingsError) else 1)


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import (  # noqa: PLC0415 - a tenth of the time of most commands
        PackageNotFoundError,
        version,
    )

    try:
        click.echo(f"journal {version('journal')}")
    except PackageNotFoundError:
        click.echo("journal (from a source tree)")
    ctx.exit()


@click.group(
    cls=_Journal, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
def main() -> None:
    """A write-ahead journal for engine commands.

    An entry that the service has acknowledged is on disk: in the write-ahead log, behind an
    fdatasync. From there it is replicated into PostgreSQL exactly once, whatever crashes. Sending
    an entry again under the same request_uuid journals nothing twice.

    \b
    Run the service, on a PostgreSQL of its own, under ./data:
      journal serve
    Use another database, migrated first:
      journal migrate --database-url postgresql://journal@db/journal
      journal serve   --database-url postgresql://journal@db/journal
    Journal a market-by-order feed, and an entry by hand:
      journal replay feed.csv.gz
      journal post entries.json
    See how far it is, and what is on disk:
      journal checkpoint
      journal wal inspect
    Make the key that blocks are signed for (JOURNAL_COLD_KEY_FILE):
      journal keys new cold.json
    Make the token that an engine shows (JOURNAL_TOKENS_FILE):
      journal tokens new engine --scope write

    Settings are environment variables with the prefix JOURNAL_, or options of the same names:
    `journal serve --help` lists them all.
    """  # noqa: D301 - the escape is click's
    os.umask(_PRIVATE_UMASK)
