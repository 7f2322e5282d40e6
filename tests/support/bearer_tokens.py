"""Tokens and their file, made as the command line makes them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.tokens import Scope, Token, digest_of, new_token, read_tokens, write_tokens

NAME = "JOURNAL_TOKENS_FILE"


class TokensFile:
    """A tokens file that a test fills."""

    def __init__(self, path: Path) -> None:
        self.path = path
        write_tokens(NAME, path, [])

    def add(
        self, name: str, *scopes: Scope, expires_in_s: float | None = None, **fields: Any
    ) -> str:
        """Add a token; returns it."""
        secret = new_token().reveal()
        now = datetime.now(UTC)
        expires = None if expires_in_s is None else now + timedelta(seconds=expires_in_s)
        token = Token(
            name=name,
            sha256=digest_of(secret),
            scopes=list(scopes),
            created=now,
            expires=expires,
            **fields,
        )
        write_tokens(NAME, self.path, [*self.read(), token])
        return secret.decode()

    def read(self) -> list[Token]:
        return read_tokens(NAME, self.path)

    def remove(self, name: str) -> None:
        """Remove every token of a name."""
        kept = [token for token in self.read() if token.name != name]
        write_tokens(NAME, self.path, kept)


def bearing(token: str) -> dict[str, str]:
    """The header that carries a token."""
    return {"authorization": f"Bearer {token}"}
