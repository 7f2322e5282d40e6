"""Processes with keys: what they print and log, and what the system lets others see of them."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import pytest
from eth_account import Account

from tests.support.cold_keys import (
    ADDRESS,
    KEY,
    KEY_NAME,
    PASSWORD,
    KeyFiles,
    assert_nothing_shown,
    changed_keystore,
    keystore_text,
)
from tests.support.preloaded import Preloaded

pytest.importorskip("coincurve", reason="coincurve has no wheel for this Python")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path) -> KeyFiles:
    return KeyFiles(tmp_path)


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    """All that these programs load sooner or later."""
    with Preloaded(ROOT, "app.cli.keys", "app.chain.signer", "eth_account") as running:
        yield running


def environment(further: Mapping[str, str | Path]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOURNAL_")}
    return {**kept, **{name: str(value) for name, value in further.items()}}


def run_python(
    code: str,
    *arguments: str | Path,
    environ: Mapping[str, str | Path] = MappingProxyType({}),
) -> subprocess.CompletedProcess[bytes]:
    """For what depends on what is loaded, and when."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=ROOT,
        env=environment(environ),
        timeout=60,
    )


JOURNAL = "from app.cli import main; main()"
OPEN = """
import logging, sys
from app.keys import open_signer
from app.settings import load_settings
logging.basicConfig(level="DEBUG")
try:
    signer = open_signer(load_settings(), lambda: 1_700_000_000_000)
    logging.info("%r %r %s", signer, signer.current(), vars(signer))
except BaseException:
    logging.exception("the start failed")
    raise
"""


class Keys(Protocol):
    """Runs `journal keys`; returns its status, output and errors."""

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]: ...


@pytest.fixture
def keys(preloaded: Preloaded) -> Keys:
    def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        # Without a terminal, passwords are read from standard input.
        done = preloaded.run(
            JOURNAL, "keys", *map(str, arguments), stdin=stdin, environ=environment({})
        )
        output, errors = (each.decode("utf-8", "replace") for each in (done.stdout, done.stderr))
        assert_nothing_shown(output + errors)
        return done.returncode, output, errors

    return run


def test_a_keystore_is_made_that_opens_again(keys: Keys, write: KeyFiles, tmp_path: Path) -> None:
    path, password = tmp_path / "cold.json", write(PASSWORD + b"\n", "password")
    before = os.umask(0)
    try:
        status, output, errors = keys("new", path, "--password-file", password)
    finally:
        os.umask(before)
    assert (status, errors) == (0, "")
    assert path.stat().st_mode & 0o7777 == 0o600
    opened = Account.from_key(Account.decrypt(path.read_text(), PASSWORD))  # type: ignore[arg-type]
    assert output == f"{opened.address}\n"
    assert keys("address", path, "--password-file", password) == (0, output, "")
    assert keys("address", path) == (0, output, "")
    made = path.read_bytes()
    status, _, errors = keys("new", path, "--password-file", password)
    assert (status, errors.count("\n"), path.read_bytes()) == (2, 1, made)
    assert "exists" in errors


def test_a_password_is_asked_for_twice_and_never_shown(keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "cold.json"
    status, output, errors = keys("new", path, stdin=PASSWORD + b"\n" + PASSWORD + b"\n")
    assert status == 0
    assert errors.count("Password") >= 1
    opened = Account.from_key(Account.decrypt(path.read_text(), PASSWORD))  # type: ignore[arg-type]
    assert output == f"{opened.address}\n"


@pytest.mark.parametrize("stdin", [b"", PASSWORD + b"\n", PASSWORD + b"\nother\n"])
def test_no_keystore_is_made_without_a_password_that_is_confirmed(
    keys: Keys, tmp_path: Path, stdin: bytes
) -> None:
    status, output, _ = keys("new", tmp_path / "cold.json", stdin=stdin)
    assert (status, output) == (1, "")
    assert not (tmp_path / "cold.json").exists()


def test_addresses_are_told_of_key_files_and_refusals_are_one_line(
    keys: Keys, write: KeyFiles, tmp_path: Path
) -> None:
    key, password = write(KEY.hex().encode()), write(PASSWORD, "password")
    assert keys("address", key) == (0, f"{ADDRESS}\n", "")
    wrong = write(changed_keystore(crypto__ciphertext=KEY.hex()), "wrong")
    for arguments in (
        ("address", write(KEY.hex().encode(), "open", 0o644)),
        ("address", key, "--password-file", password),
        ("address", wrong, "--password-file", password),
        ("address", write(b"{" + KEY.hex().encode(), "torn")),
        ("address", write(KEY.hex()[:-1].encode(), "short")),
        ("address", KEY.hex()),
        ("address", tmp_path),
        ("new", tmp_path / "no" / "cold.json", "--password-file", password),
        ("new", tmp_path / "new", "--password-file", write(b"", "empty")),
        ("new", tmp_path / "new", "--password-file", write(PASSWORD, "open", 0o644)),
    ):
        status, output, errors = keys(*arguments)
        assert (status, output, errors.count("\n")) == (2, "", 1), arguments
        assert errors.startswith(("journal: FILE=", "journal: --password-file="))
    assert not (tmp_path / "new").exists()


class Start(Protocol):
    """Loads the keys as the service does, logging all there is to log."""

    def __call__(self, **environ: str | Path) -> tuple[int, str]: ...


@pytest.fixture
def start(preloaded: Preloaded) -> Start:
    def run(**environ: str | Path) -> tuple[int, str]:
        done = preloaded.run(OPEN, stdin=b"", environ=environment(environ))
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
        assert_nothing_shown(text)
        return done.returncode, text

    return run


def test_a_service_with_keys_says_whose_and_nothing_else(start: Start, write: KeyFiles) -> None:
    status, text = start(JOURNAL_COLD_KEY_FILE=write(KEY.hex().encode()))
    assert status == 0
    assert f"blocks are signed for {ADDRESS}" in text
    assert "HotKey(0x" in text
    status, text = start(
        JOURNAL_COLD_KEY_FILE=write(keystore_text().encode()),
        JOURNAL_COLD_KEY_PASSWORD_FILE=write(PASSWORD, "password"),
    )
    assert status == 0
    assert f"blocks are signed for {ADDRESS}" in text


def test_a_service_whose_keys_are_refused_shows_nothing_of_them(
    start: Start, write: KeyFiles
) -> None:
    password, key = write(PASSWORD, "password"), write(KEY.hex().encode(), "key")
    torn = write(changed_keystore(crypto__ciphertext=KEY.hex()), "torn")
    for environ in (
        {"COLD_KEY_FILE": write(KEY.hex()[1:].encode(), "short")},
        {"COLD_KEY_FILE": write(b"{" + KEY.hex().encode(), "no keystore")},
        {"COLD_KEY_FILE": torn, "COLD_KEY_PASSWORD_FILE": password},
        {"COLD_KEY_FILE": key, "COLD_KEY_PASSWORD_FILE": password},
        {"COLD_KEY_FILE": KEY.hex()},
        {"COLD_KEY_PASSWORD_FILE": password},
        # Misspelt or misunderstood.
        {"COLD_KEY": KEY.hex()},
        {"COLD_KEY_PASSWORD": PASSWORD.decode()},
        {"COLD_KYE_FILE": KEY.hex()},
    ):
        status, text = start(**{f"JOURNAL_{name}": value for name, value in environ.items()})
        assert status == 1
        assert "SettingsError" in text
        assert "JOURNAL_COLD" in text or "COLD_KEY_FILE" in text


HARDEN = """
import ctypes, resource
from app.keys import harden_process
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
print(ctypes.CDLL(None).prctl(3), harden_process(), ctypes.CDLL(None).prctl(3),
      resource.getrlimit(resource.RLIMIT_CORE))
"""


def test_the_memory_of_a_hardened_process_is_not_dumped() -> None:
    done = run_python(HARDEN)
    assert done.stdout.decode() == "1 [] 0 (0, 0)\n"


def test_a_service_with_a_cold_key_is_hardened(write: KeyFiles) -> None:
    check = "\nimport ctypes; print('dumpable', ctypes.CDLL(None).prctl(3))"
    done = run_python(OPEN + check, environ={KEY_NAME: write(KEY.hex().encode())})
    assert done.stdout.decode() == "dumpable 0\n"


WITHOUT_COINCURVE = """
import sys
sys.modules["coincurve"] = None
import app.cli, app.main, app.keys, app.replication.process, app.server
from pathlib import Path
from app.errors import SettingsError
from app.settings import load_settings
assert app.keys.open_signer(load_settings({}), lambda: 0) is None
assert "eth_account" not in sys.modules
try:
    app.keys.load_cold_key(Path(sys.argv[1]), None)
except SettingsError as error:
    print(error)
"""


def test_only_a_service_with_a_cold_key_needs_coincurve(write: KeyFiles) -> None:
    done = run_python(WITHOUT_COINCURVE, write(KEY.hex().encode()))
    assert done.stderr.decode() == ""
    assert f"{KEY_NAME}=" in done.stdout.decode()
    assert "needs the package coincurve" in done.stdout.decode()
