"""How the command line reaches the service, and shows who it is: certificates and a token."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from app.client import DEFAULT_URL, JournalClient
from app.environment import TOKEN_VARIABLE
from app.errors import SettingsError
from app.secret_file import read_password

Command = TypeVar("Command", bound=Callable[..., Any])

_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS: Final = (
    click.option(
        "--ca-file",
        type=_file,
        help="PEM file with the certificates to trust for https (default: the system's).",
    ),
    click.option("--cert-file", type=_file, help="PEM file with a client certificate to show."),
    click.option("--key-file", type=_file, help="PEM file with the certificate's private key."),
    click.option(
        "--token-file",
        # What click says of a path would hold what was typed, which may be a token.
        type=click.Path(path_type=Path),
        help=f"File of mode 0600 with a bearer token. [env: {TOKEN_VARIABLE} has the token itself]",
    ),
    click.option(
        "--token", help="A bearer token. Every user of this machine sees it: prefer --token-file."
    ),
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client connects with; `tls` is what httpx takes."""

    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | bool = True


def credential_options(command: Command) -> Callable[..., Any]:
    """Give a command the options that make its argument `credentials`."""

    @wraps(command)
    def call(
        *arguments: Any,
        ca_file: Path | None,
        cert_file: Path | None,
        key_file: Path | None,
        token_file: Path | None,
        token: str | None,
        **options: Any,
    ) -> Any:
        credentials = Credentials(_token(token_file, token), _tls(ca_file, cert_file, key_file))
        return command(*arguments, credentials=credentials, **options)

    decorated: Callable[..., Any] = call
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def service_options(command: Command) -> Callable[..., Any]:
    """Give a command `--url` and what makes `credentials`; `connect` takes both."""
    url = click.option(
        "--url", default=DEFAULT_URL, show_default=True, help="Where the service listens."
    )
    return url(credential_options(command))


def connect(url: str, credentials: Credentials, **client_options: Any) -> JournalClient:
    """The client that the options describe."""
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(
            f"{url!r} does not begin with http:// or https://", param_hint="--url"
        )
    return JournalClient(url, token=credentials.token, verify=credentials.tls, **client_options)


def _token(path: Path | None, typed: str | None) -> str | None:
    if typed is not None:
        if path is not None:
            raise SettingsError("--token and --token-file: one of both is allowed")
        click.echo(
            "journal: every user of this machine can see --token in the list of processes; "
            f"--token-file and {TOKEN_VARIABLE} are not shown",
            err=True,
        )
    elif path is not None:
        typed = read_password("--token-file", path).reveal().decode("latin-1")
    else:
        typed = os.environ.get(TOKEN_VARIABLE)
    if typed is not None and not (typed.isascii() and typed.isprintable() and " " not in typed):
        raise SettingsError("the token: a line as `journal tokens new` prints it is allowed")
    return typed or None


def _tls(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None
) -> ssl.SSLContext | bool:
    if ca_file is None and cert_file is None and key_file is None:
        return True
    if cert_file is None and key_file is not None:
        raise SettingsError("--key-file is allowed together with --cert-file alone")
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except OSError as error:
        given = ", ".join(str(path) for path in (ca_file, cert_file, key_file) if path)
        raise SettingsError(f"{given}: {error}; PEM files are allowed") from None
    return context
