"""`journal verify`: whether a journal's blocks are what the cold key vouches for."""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.cli.credentials import Credentials, credential_options
from app.cli.options import database_of, given, settings_options
from app.errors import JournalError
from app.settings import EMBEDDED, load_settings

if TYPE_CHECKING:
    from app.chain.verify import Tally
    from app.verify.run import Report, ShowProgress
    from app.verify.source import Extent

_UNVERIFIABLE: Final = 2
_INTERRUPTED: Final = 130
_HASH_BYTES: Final = 32
_ADDRESS_BYTES: Final = 20
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def _hex(size: int) -> Callable[[str], bytes]:
    """Decode `0x` hex text of `size` bytes; a usage error for anything else."""

    def decode(text: str) -> bytes:
        try:
            found = bytes.fromhex(text.removeprefix("0x"))
        except ValueError:
            found = b""
        if len(found) != size:
            raise click.BadParameter(f"{text!r} is not 0x and {2 * size} hex digits")
        return found

    return decode


@click.command()
@click.argument("source")
@click.option(
    "--cold-address",
    type=_hex(_ADDRESS_BYTES),
    metavar="ADDRESS",
    multiple=True,
    help="The address of the cold key; give it again for each key that was used. Required, "
    "unless unsigned blocks are allowed.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="A block's timestamp must lie in its delegation's window. Not for replayed history.",
)
@click.option("--allow-unsigned", is_flag=True, help="A block without a signature is no fault.")
@click.option(
    "--service-hashed",
    is_flag=True,
    help="An identity hash that command_data does not give, because the engine sent its own, is a "
    "fault: no block covers that command's data.",
)
@click.option("--from-height", type=click.IntRange(1), help="Begin at this block.")
@click.option(
    "--trusted-hash",
    type=_hex(_HASH_BYTES),
    metavar="HASH",
    help="The hash of the block before --from-height.",
)
@click.option("--resume", type=_file, help="Begin behind what an earlier run saved here.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="When all is right, save here how far that is.",
)
@click.option(
    "--authorities",
    type=_file,
    help="The answer of GET /authorities, for a log that no longer holds a delegation.",
)
@click.option(
    "--proofs",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Blocks of a URL for which proofs are asked, drawn at random.",
)
@credential_options
@settings_options("environment", "data_dir")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(ctx: click.Context, /, as_json: bool, credentials: Credentials, **options: Any) -> None:
    """Verify the blocks of SOURCE: their hashes, roots, links, signatures and proofs.

    SOURCE is the URL of a service, the URL of a database (or `embedded`), or a directory with a
    write-ahead log. Nothing of it is trusted: commands and events are hashed again, and the roots
    are derived from them. A log directory may hold only the newest blocks; those are verified
    behind --resume, or behind --from-height and --trusted-hash. Without the state that --resume
    brings, the roots of the logs can't be derived, and events are not checked.

    No source can show that it holds the newest blocks: --save what is right now, and --resume later
    to see that it is still there, and what has come since.

    \b
    Exit codes:
      0  all is right
      1  a fault; the first one is named, by height and by what differs
      2  it could not be checked: unreachable, unreadable, no journal, no blocks, usage
    """  # noqa: D301 - the escape is click's
    try:
        report = _report(options, credentials)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(_INTERRUPTED)
    except JournalError as error:
        click.echo(f"journal: {' '.join(str(error).split())}", err=True)
        ctx.exit(_UNVERIFIABLE)
    except Exception:  # noqa: BLE001 - a defect here is no fault of the chain
        traceback.print_exc()
        ctx.exit(_UNVERIFIABLE)
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
    else:
        click.echo("\n".join(_lines(report)))
    if report.error is not None:
        click.echo(f"journal: {report.error}", err=True)
    ctx.exit(report.status)


def _report(options: dict[str, Any], credentials: Credentials) -> "Report":
    from app.verify import run as verifying  # noqa: PLC0415 - loads what signatures need

    settings = load_settings(
        **given({name: options.pop(name) for name in ("environment", "data_dir")})
    )
    request = verifying.Request(
        environment=settings.environment, token=credentials.token, tls=credentials.tls, **options
    )
    with _progress() as show:
        if request.source != EMBEDDED:
            return asyncio.run(verifying.run(request, show))
        with database_of(settings.model_copy(update={"database_url": EMBEDDED})) as url:
            return asyncio.run(verifying.run(msgspec.structs.replace(request, source=url), show))


@contextmanager
def _progress() -> "Iterator[ShowProgress]":
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[blocks]:,} blocks, {task.fields[commands]:,} commands"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("verify", total=None, blocks=0, commands=0)

        def show(tally: "Tally", extent: "Extent") -> None:
            progress.update(
                bar,
                completed=extent.done,
                total=extent.total,
                blocks=tally.blocks,
                commands=tally.commands,
            )

        yield show


def _lines(report: "Report") -> Iterator[str]:
    for name in ("blocks", "commands", "events", "delegations", "unsigned"):
        yield f"{name:<12}{getattr(report.checked, name):>14,}"
    yield f"{'proofs':<12}{report.proofs:>14,}"
    if report.height is not None:
        yield f"verified up to block {report.height}, {report.block_hash}"
    for warning in report.warnings:
        yield f"note: {warning}"
