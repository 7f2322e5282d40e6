"""Who may call the service: the tokens in force, what each may do, and how much.

All of it runs on the event loop. Without TOKENS_FILE everybody on this machine may do everything.
"""

import logging
import math
import time
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Final, NamedTuple

from app.errors import SettingsError
from app.settings import setting_name
from app.tokens import Scope, Token, read_tokens

_log = logging.getLogger(__name__)

_BURST_S: Final = 1.0
_LOG_INTERVAL_S: Final = 10.0
_EVERYTHING: Final = frozenset(Scope)


class Quota:
    """Entries a second, over time (a generic cell rate algorithm, as ITU-T I.371 has it).

    A request is let in while nothing is owed, whatever its size: one larger than a second's worth
    must not wait for ever. What it takes is owed then. One second's worth can be saved up.
    """

    def __init__(self, entries_per_s: int, now_s: Callable[[], float] = time.monotonic) -> None:
        self.entries_per_s = entries_per_s
        self._now_s = now_s
        # When all that was taken is paid off.
        self._even_at_s = -math.inf

    def wait_s(self) -> float:
        """How long nothing is let in, in seconds; 0 when the next request may come."""
        return max(0.0, self._even_at_s - self._now_s())

    def take(self, entries: int) -> None:
        """Count the entries of a request that was let in."""
        earliest_s = self._now_s() - _BURST_S
        self._even_at_s = max(self._even_at_s, earliest_s) + entries / self.entries_per_s


class Grant(NamedTuple):
    """What the holder of a token may do. `expires_at_s` is Unix time."""

    name: str
    digest: bytes
    scopes: frozenset[Scope]
    expires_at_s: float
    quota: Quota | None


class Access:
    """The tokens in force. `now_s` is Unix time.

    Where there are none, clients on other machines are let in only if `allow_anonymous`.
    """

    def __init__(
        self,
        path: Path | None,
        now_s: Callable[[], float] = time.time,
        *,
        allow_anonymous: bool = False,
    ) -> None:
        self.enforced = path is not None
        self.local_only = path is None and not allow_anonymous
        self._path = path
        self._now_s = now_s
        self._grants: dict[bytes, Grant] = {}
        self._quotas: dict[tuple[str, int], Quota] = {}

    def load(self) -> None:
        """Put the tokens of the file in force. Raises `SettingsError`: those before stay, then."""
        if self._path is None:
            return
        tokens = read_tokens(setting_name("tokens_file"), self._path)
        # What a holder owes is not forgiven by reading the file again, nor by a second token.
        wanted = {(token.name, token.entries_per_s) for token in tokens}
        self._quotas = {key: self._quotas.get(key) or Quota(key[1]) for key in _limited(wanted)}
        self._grants = {grant.digest: grant for grant in map(self._grant, tokens)}
        valid = [token for token in tokens if token.expires_at_s > self._now_s()]
        shown = ", ".join(f"{token.name} ({token.id})" for token in valid) or "nobody gets in"
        _log.info("%d tokens are in force: %s", len(valid), shown)

    def reload(self) -> None:
        """The same for a running service: a file that is not right changes nothing."""
        if self._path is None:
            _log.info("asked to read the tokens again, but TOKENS_FILE is not set")
            return
        try:
            self.load()
        except SettingsError as error:
            _log.error("the tokens that were in force stay in force: %s", error)

    def find(self, token: bytes) -> Grant | None:
        """The grant of a token, whether or not it has expired; None when there is none.

        In constant time as far as it matters: the look-up goes by a hash that nobody can steer.
        """
        digest = sha256(token).digest()
        grant = self._grants.get(digest)
        return grant if grant is not None and compare_digest(grant.digest, digest) else None

    def expired(self, grant: Grant) -> bool:
        """Whether a grant is no longer good."""
        return grant.expires_at_s <= self._now_s()

    def _grant(self, token: Token) -> Grant:
        return Grant(
            name=token.name,
            digest=bytes.fromhex(token.sha256),
            scopes=_EVERYTHING if Scope.ADMIN in token.scopes else frozenset(token.scopes),
            expires_at_s=token.expires_at_s,
            quota=self._quotas[token.name, token.entries_per_s] if token.entries_per_s else None,
        )


class RefusalLog:
    """Says that requests were refused, a line for each reason now and then.

    Whoever is refused can't fill the log; the metrics have every case.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._next_s: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def refused(self, reason: str, text: str) -> None:
        """Log `text`, unless the reason was logged a short while ago."""
        now_s = self._now_s()
        if now_s < self._next_s.get(reason, -math.inf):
            self._unsaid[reason] = self._unsaid.get(reason, 0) + 1
            return
        self._next_s[reason] = now_s + _LOG_INTERVAL_S
        unsaid = self._unsaid.pop(reason, 0)
        _log.warning("%s: %s%s", reason, text, f" ({unsaid} more since)" if unsaid else "")


def _limited(wanted: set[tuple[str, int | None]]) -> list[tuple[str, int]]:
    return [(name, rate) for name, rate in wanted if rate is not None]
