"""The keys that sign blocks: a cold key that delegates, hot keys that come and go.

    ColdKey  ──delegates for a window of time──>  HotKey  ──signs──>  headers
                  BlockSigner makes the hot keys and says which one signs now

Chain page, "Signatures". Pure: clock and randomness are passed in. Importing this module needs
coincurve, as `app.chain.authority` does. Nothing may import either of them at its top that a
service without COLD_KEY_FILE loads: Python 3.14 has no wheel of coincurve.

No object here shows a key: not in its repr, not in an error or in the locals of a traceback, and
none can be copied or pickled.
"""

from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from coincurve import PrivateKey

from app.chain.authority import (
    CURVE_ORDER,
    InvalidSignature,
    address_of,
    check_delegation,
    delegate,
    sign_header,
)
from app.chain.header import Delegation, Header
from app.errors import InvariantError, JournalError, OutsideWindow
from app.model.entry import MAX_INT64

SECRET_BYTES: Final = 32
RETRY_MS: Final = 1000
"""How long a failed rotation is left alone, so that a broken cold key does not cost every block."""

_HOUR_MS: Final = 3_600_000
_MOST_DRAWS: Final = 8


class InvalidKey(JournalError):
    """32 bytes, or what should be, are not a private key. The message says nothing about them."""


class DelegationFailed(JournalError):
    """The cold key did not give the delegation that it was asked for."""


class Delegator(Protocol):
    """What can delegate: a `ColdKey`, or something that keeps its key to itself."""

    @property
    def address(self) -> bytes:
        """The 20-byte address that verifiers expect."""

    def delegate(self, hot_address: bytes, valid_from: int, valid_until: int) -> Delegation:
        """Let `hot_address` sign, in a window of ms. May raise anything."""


class _Key:
    """A private key that shows nothing of itself but its address."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        key = PrivateKey(secret) if _is_secret(secret) else None
        # Tracebacks can show locals.
        del secret
        self.address: Final = b"" if key is None else address_of(key.public_key)
        if key is None:
            raise InvalidKey(f"a key has {SECRET_BYTES} bytes, is not zero and below the order")
        self._key: Final = key

    def __repr__(self) -> str:
        return f"{type(self).__name__}(0x{self.address.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is not copied, and not written anywhere")


class ColdKey(_Key):
    """The key whose address verifiers expect. Raises `InvalidKey`."""

    __slots__ = ()

    def delegate(self, hot_address: bytes, valid_from: int, valid_until: int) -> Delegation:
        """Let `hot_address` sign from `valid_from` until `valid_until`, in ms."""
        return delegate(self._key, hot_address, valid_from, valid_until)


class HotKey(_Key):
    """A key that signs blocks, as long as its delegation's window is open by the service's clock.

    `address` is what a header names as its `signer`.
    """

    __slots__ = ("_now_ms", "delegation")

    def __init__(
        self,
        secret: bytes,
        authorize: Callable[[bytes], Delegation],
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__(secret)
        del secret
        self.delegation: Final = authorize(self.address)
        self._now_ms = now_ms

    def sign_header(self, header: Header) -> Header:
        """Return the header with its signature; it must name this key as its `signer` already.

        Raises `OutsideWindow` when the clock has left the window since `current` returned the key,
        and `InvariantError` for a header that names another signer.
        """
        now_ms = self._now_ms()
        if not self.delegation.covers(now_ms):
            raise OutsideWindow(
                f"the clock says {now_ms}; 0x{self.address.hex()} signs from "
                f"{self.delegation.valid_from} until {self.delegation.valid_until}"
            )
        return sign_header(header, self._key)


class BlockSigner:
    """Keeps a hot key that may sign now, and replaces it at half of its life.

    For the one thread that makes blocks; others may read `fault`. `now_ms` is the wall clock: it
    may jump either way. `random_bytes` gives as many bytes as it is asked for, fit for keys.
    """

    def __init__(
        self,
        cold: Delegator,
        delegation_hours: float,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._cold = cold
        self._life_ms = int(delegation_hours * _HOUR_MS)
        if self._life_ms < 2:
            raise InvariantError(f"a delegation of {delegation_hours} h has no half")
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self.cold_address: Final = cold.address
        self.fault: str | None = None
        """Why the last rotation failed; None when it did not."""
        self._hot: HotKey | None = None
        # While the clock is in [_from, _until), `_hot` is the answer, and nothing is to be done.
        self._from = self._until = 0
        self._rotate(now_ms())

    def current(self) -> HotKey | None:
        """The key that signs now, its window open by the clock. None: the block stays unsigned."""
        now_ms = self._now_ms()
        if self._from <= now_ms < self._until:
            return self._hot
        return self._rotate(now_ms)

    def _rotate(self, now_ms: int) -> HotKey | None:
        """Replace the key. Where that fails, the old one is kept while its own window is open."""
        self._from = now_ms
        try:
            self._hot = self._new_key(now_ms)
        except Exception as error:  # noqa: BLE001 - whatever it is, blocks must go on
            # What a foreign library says might hold what nobody may read.
            self.fault = str(error) if isinstance(error, JournalError) else type(error).__name__
            self._keep_old_key(now_ms)
        else:
            self.fault = None
            self._until = now_ms + self._life_ms // 2
        return self._hot

    def _keep_old_key(self, now_ms: int) -> None:
        self._until = now_ms + RETRY_MS
        if self._hot is None:
            return
        window = self._hot.delegation
        if window.covers(now_ms):
            self._until = min(self._until, window.valid_until + 1)
        else:
            self._hot = None

    def _new_key(self, now_ms: int) -> HotKey:
        valid_until = now_ms + self._life_ms
        if now_ms < 0 or valid_until > MAX_INT64:
            raise DelegationFailed(f"no window can be written that begins at {now_ms} ms")

        def authorize(hot_address: bytes) -> Delegation:
            delegation = self._cold.delegate(hot_address, now_ms, valid_until)
            _check(delegation, self.cold_address, hot_address, now_ms, valid_until)
            return delegation

        return HotKey(new_secret(self._random_bytes), authorize, self._now_ms)


def new_secret(random_bytes: Callable[[int], bytes]) -> bytes:
    """Draw the 32 bytes of a new key. Raises `InvalidKey` when the randomness gives none."""
    for _ in range(_MOST_DRAWS):
        secret = random_bytes(SECRET_BYTES)
        if _is_secret(secret):
            return secret
    del secret
    raise InvalidKey(f"{_MOST_DRAWS} draws of random bytes were no key: the randomness is broken")


def _is_secret(secret: bytes) -> bool:
    return len(secret) == SECRET_BYTES and 0 < int.from_bytes(secret, "big") < CURVE_ORDER


def _check(
    delegation: Delegation, delegator: bytes, hot_address: bytes, valid_from: int, valid_until: int
) -> None:
    """Believe no delegation that a verifier would not: a fault in signing is found here."""
    asked = (hot_address, valid_from, valid_until)
    if (delegation.delegate, delegation.valid_from, delegation.valid_until) != asked:
        raise DelegationFailed("the cold key delegated other than it was asked to")
    try:
        check_delegation(delegation, delegator)
    except InvalidSignature as error:
        raise DelegationFailed(str(error)) from None
