"""`journal commitments`: the store of blocks, proofs and state trees."""

import click
from rich.console import Console

from app.cli.options import database_of, settings_of, settings_options


@click.group()
def commitments() -> None:
    """Look after the store of blocks and proofs."""


@commitments.command()
@settings_options(
    "data_dir", "database_url", "environment", "rsm_prune_window", "rsm_pruning_enabled"
)
def rebuild(**options: str | bool | None) -> None:
    """Build a lost or damaged commitment store again, from Postgres.

    Every block is derived from its commands and compared with its signed header. The old store is
    kept beside the new one. Blocks that Postgres does not have yet are derived from the WAL at the
    next start. The service must not be running.
    """
    settings = settings_of(options)
    from app import rebuild as rebuilding  # noqa: PLC0415 - loads the whole service

    console = Console(stderr=True)
    with database_of(settings) as database_url, console.status("rebuilding") as status:
        done = rebuilding.run(
            settings, database_url, lambda height: status.update(f"rebuilding: block {height}")
        )
    click.echo(done)
