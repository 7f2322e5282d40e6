"""Bearer tokens, and the file that says which there are and what each may do (TOKENS_FILE).

A token is `journal_` and 32 random bytes in URL-safe base64. The file holds its SHA-256 alone:
what 256 random bits hash to can't be searched for, so a slow hash would only slow the service.
"""

import math
import os
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from app.errors import SettingsError
from app.secret_file import Secret, read_secret, refuse, why_not_opened
from app.wal.files import FileSystem, write_new_file

PREFIX: Final = "journal_"
MAX_FILE_BYTES: Final = 1 << 20
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
_TOKEN_BYTES: Final = 32
_ID_DIGITS: Final = 12
_ALLOWED: Final = (
    '{"tokens": [{"name", "sha256", "scopes", "created", "expires", "entries_per_s"}]} as '
    "`journal tokens new` writes it is allowed"
)


class Scope(StrEnum):
    """What a token is good for. `admin` includes the other two."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


Moment = Annotated[datetime, Meta(tz=True)]


class Token(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One token as the file has it. Tokens of one name are of one holder: rotation has two."""

    name: Annotated[str, Meta(pattern=_NAME)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    scopes: Annotated[list[Scope], Meta(min_length=1)]
    created: Moment
    expires: Moment | None = None
    entries_per_s: Annotated[int, Meta(ge=1, le=10**9)] | None = None

    @property
    def id(self) -> str:
        """What names the token without giving it away."""
        return id_of(self.sha256)

    @property
    def expires_at_s(self) -> float:
        """When it ends to be good, in Unix time; infinity when it never does."""
        return math.inf if self.expires is None else self.expires.timestamp()


class _File(Struct, forbid_unknown_fields=True):
    tokens: list[Token]


def new_token() -> Secret:
    """Make a token: 256 bits of the system's randomness."""
    text = urlsafe_b64encode(secrets.token_bytes(_TOKEN_BYTES)).rstrip(b"=")
    return Secret(PREFIX.encode() + text)


def digest_of(token: bytes) -> str:
    """What the file keeps of a token."""
    return sha256(token).hexdigest()


def id_of(digest: str) -> str:
    """What names the token of a digest."""
    return digest[:_ID_DIGITS]


def check_holder(holder: str) -> None:
    """Refuse a name that no file of tokens may hold. Raises `SettingsError`."""
    if not re.match(_NAME, holder):
        raise SettingsError(
            f"NAME={holder!r}: 1 to 64 of A-Z, a-z, 0-9, '_', '.' and '-' are allowed, of which "
            "the first is a letter or a digit"
        )


def read_tokens(name: str, path: Path) -> list[Token]:
    """Read a tokens file; `name` is what errors call it.

    It must be as `read_secret` wants it: nobody else may add a token. Raises `SettingsError`.
    """
    return _decoded(name, path, read_secret(name, path, MAX_FILE_BYTES))


def _decoded(name: str, path: Path, content: Secret) -> list[Token]:
    """The tokens of a file that holds `content`: what is read and what is written pass here."""
    size_bytes = len(content.reveal())
    if size_bytes > MAX_FILE_BYTES:
        allowed = f"{MAX_FILE_BYTES} are allowed: `journal tokens revoke` makes room"
        refuse(name, path, f"would have {size_bytes} bytes", allowed)
    try:
        tokens = msgspec.json.decode(content.reveal(), type=_File).tokens
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refuse(name, path, f"is no tokens file: {error}", _ALLOWED)
    seen = set()
    for token in tokens:
        if token.sha256 in seen:
            refuse(name, path, f"holds the token {token.id} twice", "each token once is allowed")
        seen.add(token.sha256)
    return tokens


def write_tokens(name: str, path: Path, tokens: Sequence[Token]) -> None:
    """Replace a tokens file, atomically and durably, with one that `read_tokens` takes.

    Raises `SettingsError`, and changes nothing then.
    """
    compact = msgspec.json.encode(_File(list(tokens)))
    body = msgspec.json.format(compact, indent=2) + b"\n"
    if len(body) > MAX_FILE_BYTES:
        body = compact  # to revoke a token of a large file must not fail for its layout
    _decoded(name, path, Secret(body))
    try:
        write_new_file(FileSystem(), path, body)
    except OSError as error:
        refuse(name, path, why_not_opened(error), "a file in a directory of yours is allowed")


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Hold off other writers of a tokens file: a revocation must not get lost among them.

    Raises `SettingsError`.
    """
    try:
        # The directory stays when the file is replaced, and there is none to leave behind.
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(
            f"{str(path.parent)!r}: {os.strerror(error.errno or 0)}; a directory is allowed"
        ) from None
    try:
        flock(fd, LOCK_EX)
        yield
    finally:
        os.close(fd)
