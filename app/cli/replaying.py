"""`journal replay`: the replay driver with a progress bar and a closing summary."""

import asyncio
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from app.cli.credentials import Credentials, connect, service_options
from app.cli.durations import Duration
from app.client import JournalClient, Retry
from app.errors import OperatingError
from app.replay import FeedFile, ReplayPlan, Tally
from app.replay import replay as replay_entries

_INTERRUPTED = 130


@click.command()
@service_options
@click.option(
    "--batch", type=click.IntRange(1), default=100, show_default=True, help="Entries a request."
)
@click.option(
    "--in-flight",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Requests in flight. 1 keeps the feed's order; more may be journaled out of order.",
)
@click.option("--limit", type=click.IntRange(0), help="Stop behind this many entries.")
@click.option(
    "--give-up-after",
    "give_up_after_s",
    type=Duration(min=0),
    default=60.0,
    show_default=True,
    help="Seconds a request is tried for, through restarts of the service.",
)
@click.option(
    "--acks",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Write `request_uuid command_id` here for each entry, in order of acknowledgement.",
)
@click.argument("feed", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_context
def replay(
    ctx: click.Context,
    /,
    *,
    url: str,
    credentials: Credentials,
    batch: int,
    in_flight: int,
    limit: int | None,
    give_up_after_s: float,
    acks: TextIO | None,
    feed: Path,
) -> None:
    """Journal a market-by-order FEED (CSV, also as .gz) over HTTP/2.

    Every 1000 rows a TickSnapshot follows. What was not acknowledged is sent again with the same
    request_uuids, which come from the row numbers: the service may be killed and restarted
    meanwhile, and a second run reports every entry as a duplicate. Two different feeds do not fit
    into one journal, since their row numbers are the same.

    \b
    The summary counts:
      entries     acknowledged, duplicates included
      duplicates  journaled before: by an earlier run, or an attempt whose answer was lost
      ack p50/p99 from the first attempt of a request to its acknowledgement

    Exit codes: 0 all acknowledged, 1 refused or given up, 2 usage, 130 interrupted.
    """  # noqa: D301 - the escape is click's
    tally = Tally()
    client = connect(
        url, credentials, retry=Retry(deadline_s=give_up_after_s), on_retry=tally.count_retry
    )
    plan = ReplayPlan(batch=batch, in_flight=in_flight, limit=limit)
    try:
        with FeedFile(feed) as file:
            asyncio.run(_replay(file, client, plan, tally, acks))
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        ctx.exit(_INTERRUPTED)
    except OSError as error:
        raise OperatingError(str(error)) from error
    finally:
        click.echo("\n".join(tally.lines()))


class _Failure(ProgressColumn):
    """What is being retried at the moment; drawn at every refresh, acknowledgements or none."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        del task
        failure = self._tally.last_failure
        return Text(f"retrying: {failure}" if failure else "")


async def _replay(
    file: FeedFile, client: JournalClient, plan: ReplayPlan, tally: Tally, acks: TextIO | None
) -> None:
    console = Console(stderr=True)
    progress = Progress(
        SpinnerColumn(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[entries]:,} entries"),
        TimeElapsedColumn(),
        _Failure(tally),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        bar = progress.add_task("replay", total=plan.limit or file.size_bytes, entries=0)

        def show() -> None:
            progress.update(
                bar,
                completed=tally.entries if plan.limit else file.read_bytes,
                entries=tally.entries,
            )

        async with client:
            await replay_entries(file.entries(), client, plan, tally, acks=acks, on_ack=show)
