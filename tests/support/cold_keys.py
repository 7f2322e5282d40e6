"""Cold keys in files, and what must never be seen of them."""

import base64
import json
import traceback
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from app.errors import SettingsError
from app.keys import load_cold_key

KEY = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
PASSWORD = b"correct-h\xc3\xb6rse 47"
KEY_NAME = "JOURNAL_COLD_KEY_FILE"
PASSWORD_NAME = "JOURNAL_COLD_KEY_PASSWORD_FILE"


class KeyFiles:
    """Writes files with secrets into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, content: bytes, name: str = "cold", mode: int = 0o600) -> Path:
        path = self._directory / name
        path.write_bytes(content)
        path.chmod(mode)
        return path


@cache
def keystore_text(kdf: str = "scrypt", key: bytes = KEY) -> str:
    """A keystore that is cheap to open."""
    return json.dumps(Account.encrypt(key, PASSWORD, kdf=kdf, iterations=2))  # type: ignore[arg-type]


def changed_keystore(**changes: Any) -> bytes:
    """A keystore with some values changed: `kdfparams__n=4` is that of an inner map."""
    keystore = json.loads(keystore_text())
    for name, value in changes.items():
        inner = keystore
        *outer, last = name.split("__")
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return json.dumps(keystore).encode()


def refusal(path: Path, password_path: Path | None = None) -> str:
    """The one line that refuses a key file, which names what it must."""
    with pytest.raises(SettingsError) as caught:
        load_cold_key(path, password_path)
    text = str(caught.value)
    assert "\n" not in text
    named = path if text.startswith(f"{KEY_NAME}=") else password_path
    assert text.startswith((f"{KEY_NAME}=", f"{PASSWORD_NAME}="))
    assert repr(str(named)) in text
    assert "allowed" in text or "must name" in text
    assert_nothing_shown(_trace_of(path, password_path))
    return text


def _trace_of(path: Path, password_path: Path | None) -> str:
    """The traceback of a refused key file, with the locals of every frame of the loader."""
    with pytest.raises(SettingsError) as caught:
        load_cold_key(path, password_path)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    rendered = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join(rendered.format())


def assert_nothing_shown(text: str) -> None:
    """No four bytes of the key and no five of the password are in the text, in any encoding."""
    lowered = text.lower()
    for secret, length in ((KEY, 4), (PASSWORD, 5)):
        for start in range(len(secret) - length + 1):
            part = secret[start : start + length]
            assert part.hex() not in lowered
            assert repr(part)[2:-1].lower() not in lowered
            assert part.decode("latin-1").lower() not in lowered
            assert part.decode("utf-8", "replace").lower() not in lowered
            assert str(list(part))[1:-1] not in text
        for shift in range(3):
            # All of it but the ends, which depend on what is beside it.
            assert base64.b64encode(bytes(shift) + secret).decode()[4:-4] not in text
        assert str(int.from_bytes(secret, "big")) not in text
