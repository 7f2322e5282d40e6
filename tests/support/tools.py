"""Programs of the machine that tests need, and that not every machine has."""

import os
import shutil
from typing import Final

import pytest

from app.wal.sync import open_ring

REQUIRED: Final = "REQUIRED_TOOLS"
"""Names, separated by blanks, of the programs that have to be there: `.ci/run` installs them."""


def tool(name: str, purpose: str) -> str:
    """The path of a program. Skips where it is missing, and fails where it is required."""
    path = shutil.which(name)
    if path is not None:
        return path
    missing = f"there is no {name}: {purpose}"
    if name in os.environ.get(REQUIRED, "").split():
        pytest.fail(missing)
    pytest.skip(missing)


def io_uring_missing() -> str:
    """Why syncs by io_uring can't be had here; empty where they can."""
    try:
        open_ring().close()
    except OSError as error:
        return f"io_uring can't be set up here: {error}"
    return ""


def need_io_uring() -> None:
    """Skip where syncs by io_uring can't be had."""
    if missing := io_uring_missing():
        pytest.skip(missing)
