"""Keystores: a key in JSON behind a password (Web3 Secret Storage, version 3).

eth-account opens and makes them; it is imported when it does, for it costs 35 MB and half a second,
and most services have no cold key. What it raises is dropped, since its frames hold key and
password.
"""

import json
import re
import sys
from typing import Annotated, Any, Final, Literal, cast

import msgspec
from msgspec import Meta, Struct

from app.secret_file import Secret

_ADDRESS: Final = re.compile(r"(?:0x)?([0-9a-f]{40})")


class _Kdf(Struct, omit_defaults=True):
    """The parameters of both key derivations, in limits: 1 GiB for scrypt, some seconds for both.

    (What is usual: n=262144, r=8, p=1, which takes 256 MiB; c=262144 to 1000000.)
    """

    salt: str
    dklen: Literal[32]
    n: Annotated[int, Meta(ge=2, le=2**20)] | None = None
    r: Annotated[int, Meta(ge=1, le=8)] | None = None
    p: Annotated[int, Meta(ge=1, le=16)] | None = None
    c: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    prf: Literal["hmac-sha256"] | None = None


class _CipherParams(Struct):
    iv: str


class _Crypto(Struct):
    cipher: Literal["aes-128-ctr"]
    cipherparams: _CipherParams
    ciphertext: str
    kdf: Literal["scrypt", "pbkdf2"]
    kdfparams: _Kdf
    mac: str


class Keystore(Struct, omit_defaults=True):
    """A keystore, as far as it is used."""

    crypto: _Crypto
    version: Literal[3]
    address: str | None = None

    def __repr__(self) -> str:
        # Tracebacks can show locals, and who knows what was put in there.
        return "Keystore()"

    def stated_address(self) -> bytes | None:
        """The address it says to be of, which nothing proves: 20 bytes, or none for bad text."""
        if self.address is None:
            return None
        match = _ADDRESS.fullmatch(self.address)
        return b"" if match is None else bytes.fromhex(match[1])


def looks_like_keystore(content: Secret) -> bool:
    """Whether the content of a key file is to be taken for a keystore: it may still be none."""
    return content.reveal().lstrip()[:1] == b"{"


def parse_keystore(content: Secret) -> Keystore | None:
    """Read the JSON; None when it is no keystore, or one that would cost too much to open."""
    try:
        # All in it is names, hex and numbers, and some writers begin its names with capitals.
        return msgspec.json.decode(content.reveal().lower(), type=Keystore)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def open_keystore(keystore: Keystore, password: Secret) -> Secret | None:
    """Decrypt the key; None when this is not the password, or the keystore was changed."""
    # What was checked is what is opened, whatever else the file holds.
    checked = msgspec.to_builtins(keystore)
    try:
        return Secret(bytes(_account().decrypt(checked, cast("str", password.reveal()))))
    except Exception:  # noqa: BLE001 - whatever it is, it must not get out
        return None


def _account() -> Any:
    """Load eth-account, leaving the recursion limit as it is.

    A library that comes along raises it a hundredfold: a body that is nested deeply enough would
    overflow the stack then, instead of being refused.
    """
    limit = sys.getrecursionlimit()
    from eth_account import Account  # noqa: PLC0415 - see above

    sys.setrecursionlimit(limit)
    return Account


def make_keystore(key: Secret, password: Secret) -> bytes:
    """Encrypt a key of 32 bytes that is in the range of keys: the JSON, with scrypt."""
    # By its types a password is text, but bytes it takes as they are.
    keystore = _account().encrypt(key.reveal(), cast("str", password.reveal()))
    return json.dumps(keystore).encode() + b"\n"
