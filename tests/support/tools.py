"""What tests need of the machine, programs and privileges, and not every machine has."""

import os
import shutil
from typing import Final, NoReturn

import pytest

from app.wal.sync import open_ring

REQUIRED: Final = "REQUIRED_TOOLS"
"""Names, separated by blanks, of what has to be there: `.ci/run` installs the programs.

Three stand for what has to be allowed: `ptrace` for tracing processes, `mount` for mounting file
systems, `cgroup` for limiting memory.
"""


def tool(name: str, purpose: str) -> str:
    """The path of a program. Skips where it is missing, and fails where it is required."""
    path = shutil.which(name)
    if path is None:
        unavailable(name, f"there is no {name}: {purpose}")
    return path


def unavailable(name: str, why: str) -> NoReturn:
    """Skip the test, or fail it where what it needs is required."""
    if name in os.environ.get(REQUIRED, "").split():
        pytest.fail(why)
    pytest.skip(why)


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
