"""Files that hold a secret: the one door through which they are read.

No error of this module holds a byte of a secret, also not in the locals of its frames.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import Final, NoReturn

from app.errors import SettingsError
from app.wal.files import FILE_MODE

MAX_PASSWORD_BYTES: Final = 1024
FILE_MODES: Final = (FILE_MODE, 0o400)

# A FIFO is refused, not waited for; a terminal does not become ours.
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_ALLOWED: Final = (
    "a regular file of mode 0600 or 0400 that belongs to the user of this process is allowed"
)
_ALLOWED_PRIVATE: Final = (
    "a file of mode 0600 that belongs to the user of this process, or of mode 0640 that belongs to "
    "root, is allowed"
)
_HEX_KEY: Final = re.compile(r"(0x)?[0-9a-f]{64}", re.IGNORECASE)


class Secret:
    """Bytes that must not be shown: neither in a repr nor among the locals of a traceback."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def reveal(self) -> bytes:
        """The bytes. Use them in an expression, and give them no name."""
        return self._data

    def __repr__(self) -> str:
        return "Secret()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied, and not written anywhere")


def read_secret(name: str, path: Path, most_bytes: int) -> Secret:
    """Read a file that nobody else can read or write; `name` is what errors call it.

    Refuses anything but a regular file of mode 0600 or 0400, owned by the effective user, of at
    most `most_bytes`; symbolic links too. Raises `SettingsError`.
    """
    fd, fault, secret = -1, "", Secret(b"")
    try:
        fd = os.open(path, _READ_FLAGS)
        fault = _fault_of(os.fstat(fd), most_bytes)
        if not fault:
            with os.fdopen(fd, "rb", closefd=False) as file:
                # It may grow meanwhile: what is taken never does.
                secret = Secret(file.read(most_bytes + 1))
    except OSError as error:
        fault = why_not_opened(error)
    except ValueError:
        fault = "is not the name of a file"
    finally:
        if fd >= 0:
            os.close(fd)
    if len(secret.reveal()) > most_bytes:
        fault = f"has more than {most_bytes} bytes"
    if fault:
        refuse(name, path, fault, _ALLOWED)
    return secret


def check_private_key(name: str, path: Path) -> None:
    """Refuse a file with a private key that others could read or change, as PostgreSQL does.

    Another program opens it, so links are followed; one of the system's keys may be read by its
    group. Raises `SettingsError`.
    """
    try:
        status = path.stat()
    except OSError as error:
        refuse(name, path, why_not_opened(error), _ALLOWED_PRIVATE)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (os.geteuid(), 0):
        refuse(name, path, f"belongs to the user {status.st_uid}", _ALLOWED_PRIVATE)
    others = 0o027 if status.st_uid == 0 else 0o077
    if mode & others:
        refuse(name, path, f"has the mode {mode:04o}", _ALLOWED_PRIVATE)


def read_password(name: str, path: Path) -> Secret:
    """Read a password: what is in the file, but for one line break at its end.

    Refuses what `read_secret` refuses, and an empty one. Raises `SettingsError`.
    """
    secret = read_secret(name, path, MAX_PASSWORD_BYTES)
    password = Secret(secret.reveal().removesuffix(b"\n").removesuffix(b"\r"))
    if not password.reveal():
        refuse(name, path, "is empty", "a file that holds a password is allowed")
    return password


def refuse(name: str, path: Path, fault: str, allowed: str) -> NoReturn:
    """Raise the `SettingsError` of a file.

    Who gave a key instead of a path does not find it in a log.
    """
    shown = "(a key, not a path)" if _HEX_KEY.fullmatch(str(path)) else repr(str(path))
    raise SettingsError(f"{name}={shown}: {fault}; {allowed}")


def why_not_opened(error: OSError) -> str:
    """What is wrong with a path, without the path."""
    if error.errno == errno.ELOOP:
        return "is a symbolic link"
    return f"can't be opened: {os.strerror(error.errno or errno.EIO)}"


def _fault_of(status: os.stat_result, most_bytes: int) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "is a directory" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
    if status.st_uid != os.geteuid():
        return f"belongs to the user {status.st_uid}"
    if stat.S_IMODE(status.st_mode) not in FILE_MODES:
        return f"has the mode {stat.S_IMODE(status.st_mode):04o}"
    return f"has more than {most_bytes} bytes" if status.st_size > most_bytes else ""
