"""Commands that make one call of the API and print its answer as JSON."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import BinaryIO

import click
import msgspec
from msgspec import Struct

from app.cli.credentials import Credentials, connect, service_options
from app.cli.durations import Duration
from app.client import JSON, JournalClient, Retry


@click.command()
@service_options
@click.option(
    "--give-up-after",
    "give_up_after_s",
    type=Duration(min=0),
    default=30.0,
    show_default=True,
    help="Seconds to keep trying while the service can't be reached or has no room.",
)
@click.argument("file", type=click.File("rb"))
def post(url: str, credentials: Credentials, give_up_after_s: float, file: BinaryIO) -> None:
    """Journal the entries in FILE (JSON, `-` for standard input), and print the acknowledgement.

    FILE holds a request, {"entries": [...]}, as `POST /entries` takes it. A request that is not
    acknowledged is sent again, which is safe: its request_uuids stay the same.
    """
    body = file.read()
    retry = Retry(deadline_s=give_up_after_s)
    _print_answer(
        connect(url, credentials, retry=retry), lambda client: client.append_encoded(body, JSON)
    )


@click.command()
@service_options
@click.option(
    "--timeout-s",
    type=Duration(min=0),
    default=30.0,
    show_default=True,
    help="How long the service may wait.",
)
def flush(url: str, credentials: Credentials, timeout_s: float) -> None:
    """Wait until everything accepted so far is durable and replicated; print the checkpoint."""
    _print_answer(connect(url, credentials), lambda client: client.flush(timeout_s))


@click.command()
@service_options
def checkpoint(url: str, credentials: Credentials) -> None:
    """Print how far the journal is: what is durable, and what is replicated."""
    _print_answer(connect(url, credentials), lambda client: client.checkpoint())


def _print_answer(
    client: JournalClient, call: Callable[[JournalClient], Awaitable[Struct]]
) -> None:
    async def answer() -> Struct:
        async with client:
            return await call(client)

    encoded = msgspec.json.encode(asyncio.run(answer()))
    click.echo(msgspec.json.format(encoded, indent=2))
