"""`journal tokens`: who may call the service."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click
from msgspec.structs import replace

from app.cli.durations import Duration
from app.cli.options import settings_of, settings_options
from app.errors import SettingsError
from app.settings import setting_name
from app.tokens import (
    Scope,
    Token,
    check_holder,
    digest_of,
    new_token,
    read_tokens,
    sole_writer,
    write_tokens,
)

_SETTING: Final = setting_name("tokens_file")
_RELOAD: Final = "a running service takes it in on SIGHUP"
_MAX_DAYS: Final = 36500
# So long `list` shows that they were there.
_EXPIRED_KEPT: Final = timedelta(days=30)


@click.group()
def tokens() -> None:
    """Say who may call the service: make, list and revoke bearer tokens.

    TOKENS_FILE belongs to the user that the service runs as, with mode 0600. It holds hashes alone:
    nobody can read a token from it. A running service reads it again on SIGHUP.
    """


@tokens.command()
@settings_options("tokens_file")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    help="write: POST /entries and /flush. read: everything else. admin: both. May be repeated.",
)
@click.option(
    "--expires-days", type=Duration(0, _MAX_DAYS, min_open=True), help="How long it is good."
)
@click.option(
    "--entries-per-s", type=click.IntRange(1, 10**9), help="Quota: entries per second, over time."
)
@click.option(
    "--overlap-hours",
    type=Duration(0, _MAX_DAYS * 24),
    help="Rotate: the tokens that NAME has stay good for so long. The new one gets their scopes "
    "and quota, where none are given.",
)
@click.argument("name")
def new(
    name: str,
    scopes: Sequence[str],
    expires_days: float | None,
    entries_per_s: int | None,
    overlap_hours: float | None,
    **options: str | bool | None,
) -> None:
    """Make a token for the holder NAME and print it, this once.

    TOKENS_FILE is made where it is not there. The token goes to standard output, so that it can go
    to a file: `(umask 077; journal tokens new engine --scope write > engine.token)`. Tokens that
    expired more than 30 days ago are removed from TOKENS_FILE.
    """
    check_holder(name)
    path = _path(options)
    now = datetime.now(UTC).replace(microsecond=0)
    secret = new_token()
    with sole_writer(path):
        held = read_tokens(_SETTING, path) if os.path.lexists(path) else []
        before = _current(held, name, now)
        if before and overlap_hours is None:
            raise SettingsError(
                f"{name!r} has the token {before[-1].id}; another name, or --overlap-hours to "
                "rotate it, is allowed"
            )
        if not scopes and not before:
            raise SettingsError("--scope is missing; write, read and admin are allowed")
        token = Token(
            name=name,
            sha256=digest_of(secret.reveal()),
            scopes=[Scope(scope) for scope in scopes] or before[-1].scopes,
            created=now,
            expires=None if expires_days is None else now + timedelta(days=expires_days),
            entries_per_s=entries_per_s or (before[-1].entries_per_s if before else None),
        )
        end = now + timedelta(hours=overlap_hours or 0)
        oldest = (now - _EXPIRED_KEPT).timestamp()
        kept = [_ending(each, before, end) for each in held if each.expires_at_s >= oldest]
        write_tokens(_SETTING, path, [*kept, token])
    click.echo(secret.reveal().decode())
    click.echo(f"token {token.id} of {name!r}; {_RELOAD}", err=True)


@tokens.command(name="list")
@settings_options("tokens_file")
def list_tokens(**options: str | bool | None) -> None:
    """List the tokens; none of them can be shown again."""
    now = datetime.now(UTC)
    rows = [("name", "token", "scopes", "created", "expires", "entries/s")]
    rows += [
        (
            token.name,
            token.id,
            ",".join(token.scopes),
            f"{token.created:%Y-%m-%d %H:%M}",
            _expiry(token, now),
            str(token.entries_per_s or "any"),
        )
        for token in read_tokens(_SETTING, _path(options))
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@tokens.command()
@settings_options("tokens_file")
@click.argument("which", metavar="NAME|TOKEN")
def revoke(which: str, **options: str | bool | None) -> None:
    """Revoke every token of a holder, or the one that `list` shows under this id."""
    path = _path(options)
    with sole_writer(path):
        held = read_tokens(_SETTING, path)
        revoked = [token.id for token in held if which in (token.name, token.id)]
        if not revoked:
            raise SettingsError(f"no token is {which!r}; `journal tokens list` shows what there is")
        kept = [token for token in held if which not in (token.name, token.id)]
        write_tokens(_SETTING, path, kept)
    click.echo(f"revoked {', '.join(revoked)}; {_RELOAD}")


def _path(options: dict[str, str | bool | None]) -> Path:
    path = settings_of(options).tokens_file
    if path is None:
        raise SettingsError(f"--tokens-file (or {_SETTING}) is missing; a path is allowed")
    return path


def _current(held: Sequence[Token], name: str, now: datetime) -> list[Token]:
    """The tokens of a name that are still good, the one that lasts longest at the end."""
    current = [t for t in held if t.name == name and t.expires_at_s > now.timestamp()]
    return sorted(current, key=lambda token: token.expires_at_s)


def _ending(token: Token, rotated: Sequence[Token], end: datetime) -> Token:
    """The token as it is after a rotation, which never makes one last longer."""
    if token not in rotated or token.expires_at_s <= end.timestamp():
        return token
    return replace(token, expires=end)


def _expiry(token: Token, now: datetime) -> str:
    if token.expires is None:
        return "never"
    shown = f"{token.expires.astimezone(UTC):%Y-%m-%d %H:%M}"
    return f"{shown} (expired)" if token.expires <= now else shown
