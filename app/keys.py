"""Cold keys on disk, and a process that keeps them to itself.

A cold key is read from a keystore JSON, or from a file with its 64 hex digits.

No error of this module holds a byte of a key or of a password: what libraries raise is dropped, not
chained, since their messages and the locals of their frames might. What Python can't do is to wipe:
`bytes` are immutable, libraries copy them, and freed memory keeps what was in it, so the key is in
the memory of this process for as long as it lives. `harden_process` keeps others from looking
there. Memory is not locked: where swap is not encrypted, turn it off.

This module imports without coincurve, for which Python 3.14 has no wheel; loading a key needs it.
"""

import ctypes
import errno
import logging
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from app.keystore import looks_like_keystore, make_keystore, open_keystore, parse_keystore
from app.secret_file import Secret, read_password, read_secret, refuse, why_not_opened
from app.settings import Settings, setting_name
from app.wal.files import FILE_MODE, FileSystem

if TYPE_CHECKING:
    from app.chain.signer import BlockSigner, ColdKey

_log = logging.getLogger(__name__)

MAX_KEY_FILE_BYTES: Final = 64 * 1024

_HEX_KEY: Final = re.compile(rb"(?:0[xX])?([0-9a-fA-F]{64})")
_PR_SET_DUMPABLE: Final = 4
_ALLOWED_KEY: Final = (
    "a keystore JSON of version 3 (aes-128-ctr; scrypt or pbkdf2), or a secp256k1 key as 64 hex "
    "digits is allowed"
)
_ALLOWED_KEYSTORE: Final = "a keystore that nobody has changed, with its own password, is allowed"
_ALLOWED_NEW: Final = "the name of a new file, in a directory of yours, is allowed"


def open_signer(settings: Settings, now_ms: Callable[[], int]) -> "BlockSigner | None":
    """Harden the process, load the cold key and delegate to a first hot key.

    None, and nothing of this, without COLD_KEY_FILE. Takes a second for a keystore, and as much
    memory for the time as the keystore says: 256 MiB is usual. Raises `SettingsError`.
    """
    if settings.cold_key_file is None:
        return None
    for failure in harden_process():
        _log.warning("the memory with the cold key is less guarded: %s", failure)
    cold = load_cold_key(settings.cold_key_file, settings.cold_key_password_file)
    from app.chain.signer import BlockSigner  # noqa: PLC0415 - needs coincurve

    _log.info("blocks are signed for %s", checksum_address(cold.address))
    return BlockSigner(cold, settings.delegation_hours, now_ms, os.urandom)


def harden_process() -> list[str]:
    """Keep this process' memory from core dumps, from debuggers and from others' `/proc`.

    Returns what the system did not allow. The limit alone would not do, since a core that is piped
    to a program ignores it. A child that executes a program inherits the limit alone.
    """
    failed = []
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (OSError, ValueError) as error:
        failed.append(f"RLIMIT_CORE: {error}")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        failed.append(f"PR_SET_DUMPABLE: {os.strerror(ctypes.get_errno())}")
    return failed


def load_cold_key(path: Path, password_path: Path | None) -> "ColdKey":
    """Load the cold key of COLD_KEY_FILE and COLD_KEY_PASSWORD_FILE. Raises `SettingsError`."""
    name = setting_name("cold_key_file")
    _check_can_sign(name, path)
    return load_key(name, path, setting_name("cold_key_password_file"), password_path)


def load_key(name: str, path: Path, password_name: str, password_path: Path | None) -> "ColdKey":
    """Load a key; the names are what errors call the two files. Raises `SettingsError`."""
    content = read_secret(name, path, MAX_KEY_FILE_BYTES)
    if not looks_like_keystore(content):
        if password_path is not None:
            allowed = f"{password_name} is allowed for a keystore JSON alone"
            refuse(name, path, "is not a keystore", allowed)
        return _key_of_hex(name, path, content)
    if password_path is None:
        refuse(name, path, "is a keystore", f"{password_name} must name the file of its password")
    return _key_of_keystore(name, path, content, read_password(password_name, password_path))


def stated_address(name: str, path: Path) -> bytes | None:
    """The address that a keystore says to be of, without proof; None when it isn't a keystore.

    Raises `SettingsError`.
    """
    content = read_secret(name, path, MAX_KEY_FILE_BYTES)
    if not looks_like_keystore(content):
        return None
    keystore = parse_keystore(content)
    if keystore is None:
        refuse(name, path, "holds no key", _ALLOWED_KEY)
    address = keystore.stated_address()
    if not address:
        refuse(name, path, "states no address", "its password is needed to tell")
    return address


def create_keystore(name: str, path: Path, ask_password: Callable[[], Secret]) -> bytes:
    """Make a new key and a keystore of it at `path`, mode 0600, which must not exist.

    Returns the address. The file and its name are durable then. Raises `SettingsError`, and leaves
    nothing behind.
    """
    _check_can_sign(name, path)
    from app.chain.signer import ColdKey, new_secret  # noqa: PLC0415 - needs coincurve

    if os.path.lexists(path):
        refuse(name, path, "exists", _ALLOWED_NEW)
    key = Secret(new_secret(os.urandom))
    fault = _write_new(path, make_keystore(key, ask_password()))
    if fault:
        refuse(name, path, fault, _ALLOWED_NEW)
    return ColdKey(key.reveal()).address


def checksum_address(address: bytes) -> str:
    """Write an address as EIP-55 has it."""
    from eth_utils.address import to_checksum_address  # noqa: PLC0415 - comes with eth-account

    return to_checksum_address(address)


def _check_can_sign(name: str, path: Path) -> None:
    try:
        import app.chain.signer  # noqa: F401, PLC0415 - needs coincurve
    except ImportError as error:
        missing = error.name
    else:
        return
    refuse(
        name,
        path,
        f"signing needs the package {missing}",
        "a Python that it has wheels for, or no key, is allowed",
    )


def _key_of_hex(name: str, path: Path, content: Secret) -> "ColdKey":
    secret = _hex_secret(content)
    key = None if secret is None else _cold_key(secret)
    if key is None:
        refuse(name, path, "holds no key", _ALLOWED_KEY)
    return key


def _hex_secret(content: Secret) -> Secret | None:
    digits = _HEX_KEY.fullmatch(content.reveal().strip())
    return None if digits is None else Secret(bytes.fromhex(digits[1].decode()))


def _key_of_keystore(name: str, path: Path, content: Secret, password: Secret) -> "ColdKey":
    keystore = parse_keystore(content)
    if keystore is None:
        refuse(name, path, "holds no key", _ALLOWED_KEY)
    secret = open_keystore(keystore, password)
    if secret is None:
        refuse(name, path, "can't be opened", _ALLOWED_KEYSTORE)
    key = _cold_key(secret)
    if key is None:
        refuse(name, path, "holds no key", _ALLOWED_KEY)
    if keystore.stated_address() not in (None, key.address):
        fault = f"states another address than that of its key, {checksum_address(key.address)}"
        refuse(name, path, fault, _ALLOWED_KEYSTORE)
    return key


def _cold_key(secret: Secret) -> "ColdKey | None":
    from app.chain.signer import ColdKey, InvalidKey  # noqa: PLC0415 - needs coincurve

    try:
        return ColdKey(secret.reveal())
    except InvalidKey:
        return None


def _write_new(path: Path, data: bytes) -> str:
    """Write a file that must not exist, durably. Returns what was in the way, or nothing."""
    files = FileSystem()
    try:
        fd = files.create(path)
    except FileExistsError:
        return "exists"
    except OSError as error:
        return why_not_opened(error)
    try:
        os.fchmod(fd, FILE_MODE)
        files.write(fd, data, 0)
        files.sync_data(fd)
        files.sync_directory(path.parent)
    except OSError as error:
        files.unlink(path)
        return f"can't be written: {os.strerror(error.errno or errno.EIO)}"
    finally:
        files.close(fd)
    return ""
