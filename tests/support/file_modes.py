"""Whether what is on disk is its owner's alone."""

import stat
from pathlib import Path


def assert_owners_alone(directory: Path) -> None:
    """A directory and everything below it is open to nobody else, and made as all of it is."""
    for path in (directory, *directory.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert oct(mode) == oct(0o700 if path.is_dir() else 0o600), path
