"""Whether what is in the data directory is its owner's alone.

What others could have written can't be trusted, and what they could read may be secret. Nothing is
mended here: a directory that was opened to others may have been so for a reason, and is perhaps not
ours at all.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from app.errors import StartRefused
from app.settings import Settings
from app.wal.reserve import NAME as RESERVE_NAME

# Permissions that nobody but the owner may have.
_OTHERS: Final = 0o077
# PostgreSQL's own user goes through DATA_DIR where root runs the embedded one (`app.embedded`):
# names in it can be reached then, but not listed.
_OTHERS_ON_THE_WAY: Final = 0o066


def check_ownership(settings: Settings) -> None:
    """Refuse files and directories that belong to others, or that others may read or write.

    Raises `StartRefused` naming the path, what it is and what is allowed. The embedded PostgreSQL
    looks after its own directory, and refuses likewise.
    """
    _check(settings.data_dir, _OTHERS_ON_THE_WAY, "0700")
    for file in (settings.checkpoint_path, settings.data_dir / RESERVE_NAME):
        _check(file, _OTHERS, "0600")
    for directory in (settings.wal_dir, settings.commitments_dir):
        _check(directory, _OTHERS, "0700")
        for file in _files(directory):
            _check(file, _OTHERS, "0600")


def _check(path: Path, forbidden: int, allowed: str) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid():
        raise StartRefused(
            f"{path} belongs to the user {status.st_uid}, and this process runs as "
            f"{os.geteuid()}: run as its owner, or `chown` it"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        raise StartRefused(
            f"{path} has the mode {mode:04o}; {allowed} is allowed: make sure that nobody has "
            f"changed it, then `chmod go= {path}`"
        )


def _files(directory: Path) -> Iterator[Path]:
    """All files in a directory; none of ours holds another (`lost+found` of a volume may be)."""
    if directory.is_dir():
        yield from (path for path in sorted(directory.iterdir()) if not path.is_dir())
