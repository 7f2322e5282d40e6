"""`journal wal`: look at a write-ahead log on disk, and repair its tail."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from app.cli.options import database_of, settings_of, settings_options
from app.errors import OperatingError, SettingsError, StartRefused
from app.wal.files import FileSystem
from app.wal.inspect import DAMAGE, Finding, Totals, findings
from app.wal.segments import Segment

_ALLOWED: Final = "the directory of a write-ahead log is allowed"


@click.group()
def wal() -> None:
    """Look at a write-ahead log on disk, or repair its tail."""


@wal.command()
@settings_options("data_dir")
@click.option("--records", is_flag=True, help="Every record, not only the segments.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.argument(
    "directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.pass_context
def inspect(
    ctx: click.Context,
    /,
    records: bool,
    as_json: bool,
    directory: Path | None,
    **options: str | bool | None,
) -> None:
    """Print the segments of a WAL, and what is wrong with them.

    DIRECTORY is the one with the .wal files (default: `wal` under the data directory). It is only
    read, also while the service runs: the last record may look incomplete then, because it is being
    written.

    \b
    Exit codes:
      0  all is right
      1  there is damage
      2  it could not be looked at: unreachable, unreadable, no log, usage
    """  # noqa: D301 - the escape is click's
    directory = directory or settings_of(options).wal_dir
    total = Totals()
    line = None
    try:
        for line, text in _lines(directory, records, total):
            click.echo(msgspec.json.encode(line).decode() if as_json else text)
    except OperatingError as error:
        raise SettingsError(f"{error}; {_ALLOWED}") from None
    if line is None:
        raise SettingsError(f"{directory} holds no .wal file; {_ALLOWED}")
    ctx.exit(1 if total.damages else 0)


@wal.command()
@settings_options("data_dir", "database_url", "environment")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--without-postgres",
    is_flag=True,
    help="With --yes: cut also when Postgres can't be reached, which may know that the record was "
    "acknowledged.",
)
def repair(yes: bool, without_postgres: bool, **options: str | bool | None) -> None:
    """Cut a damaged last record off, if nothing shows that it was ever acknowledged.

    Checkpoint, commitment store and Postgres are asked what was. What is cut is copied aside first.
    Anything that is not a tail is refused and left as it is. The service must not be running.
    """
    settings = settings_of(options)

    def confirm(finding: str, was_asked: bool) -> None:
        click.echo(finding)
        if not yes:
            click.confirm("Go on?", abort=True)
        elif not (was_asked or without_postgres):
            raise StartRefused(
                "Postgres may hold what would be cut: start it, or add --without-postgres"
            )

    from app import repair as repairing  # noqa: PLC0415 - loads the whole service

    with database_of(settings) as database_url:
        click.echo(repairing.run(settings, database_url, confirm))


def _lines(directory: Path, records: bool, total: Totals) -> Iterator[tuple[dict[str, Any], str]]:
    """Every line of the report, as a map and as text; `total` sums them up on the way."""
    for segment, found in groupby(findings(directory, FileSystem()), key=lambda pair: pair[0]):
        sums = Totals()
        for _, finding in found:
            sums.add(finding)
            total.add(finding)
            if records or finding.kind == DAMAGE:
                yield _finding_line(segment, finding)
        yield _segment_line(segment, sums)


def _finding_line(segment: Segment, finding: Finding) -> tuple[dict[str, Any], str]:
    line = {"segment": segment.path.name, **msgspec.to_builtins(finding)}
    commands = ""
    if finding.commands:
        commands = f"  {finding.commands} commands from {finding.first_command_id}"
    text = f"  {finding.offset:>15}  {finding.length:>12} bytes  {finding.kind}{commands}"
    return line, f"{text}  {finding.detail}".rstrip()


def _segment_line(segment: Segment, sums: Totals) -> tuple[dict[str, Any], str]:
    line = {
        "segment": segment.path.name,
        "offset": segment.start,
        "length": segment.size,
        "kind": "segment",
        **msgspec.to_builtins(sums),
    }
    commands = "no commands"
    if sums.commands:
        commands = f"commands {sums.first_command_id} to {sums.last_command_id}"
    text = f"{segment.path.name}  {segment.size} bytes  {sums.records} records  {commands}"
    if sums.zero_bytes:
        text += f"  {sums.zero_bytes} bytes of zeros"
    return line, text + (f"  {sums.damages} places damaged" if sums.damages else "")
