"""`journal keys`: make a cold key, and tell the address that verifiers expect."""

from pathlib import Path
from typing import Final

import click

from app.errors import SettingsError
from app.keys import (
    checksum_address,
    create_keystore,
    harden_process,
    load_key,
    stated_address,
)
from app.secret_file import Secret, read_password

_FILE: Final = "FILE"
_PASSWORD_FILE: Final = "--password-file"  # noqa: S105 - an option


# Paths are checked where files are opened: what click says of them would hold what was typed.
_file = click.argument("file", metavar=_FILE, type=click.Path(path_type=Path))
_password_file = click.option(
    _PASSWORD_FILE,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="File of mode 0600 with the password (one line break at its end is not part of it).",
)


@click.group()
def keys() -> None:
    """Make a cold key, and tell the address that verifiers expect."""


@keys.command()
@_file
@_password_file
def new(file: Path, password_file: Path | None) -> None:
    """Make a new cold key and write its keystore to FILE, which must not exist.

    The password is asked for, unless --password-file has it. Prints the key's address: whoever
    verifies blocks needs it. Nobody can recover a lost password, or a lost FILE.
    """
    harden_process()

    def password() -> Secret:
        return _ask() if password_file is None else read_password(_PASSWORD_FILE, password_file)

    click.echo(checksum_address(create_keystore(_FILE, file, password)))


@keys.command()
@_file
@_password_file
def address(file: Path, password_file: Path | None) -> None:
    """Print the address of the key in FILE, a keystore or a hex key file.

    Without its password, a keystore's address is what the file says, which nothing proves.
    """
    harden_process()
    stated = stated_address(_FILE, file) if password_file is None else None
    if stated is None:
        stated = load_key(_FILE, file, _PASSWORD_FILE, password_file).address
    click.echo(checksum_address(stated))


def _ask() -> Secret:
    password = Secret(
        click.prompt(
            "Password", hide_input=True, confirmation_prompt=True, err=True, show_default=False
        ).encode("utf-8", "surrogateescape")
    )
    if not password.reveal():
        raise SettingsError("the password is empty; any other is allowed")
    return password
