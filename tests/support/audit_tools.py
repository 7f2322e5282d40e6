"""What `make audit` and `make sbom` run, on a copy of what they read."""

import shutil
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
_TOOLS: Final = ROOT / ".venv-tools"


def copied(*names: str, to: Path) -> Path:
    """Copy files of the project into a directory, under their own names; the directory."""
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)
    return to


def lend_tools(project: Path) -> None:
    """Let a copy use the project's tools. Skips where they have not been set up."""
    if not (_TOOLS / "stamp").exists():
        pytest.skip("there are no tools: `make audit` or `make sbom` sets them up")
    (project / ".venv-tools").symlink_to(_TOOLS.resolve())


def locked(lock: Path) -> dict[str, str]:
    """The packages that a lock names for this machine, with their versions."""
    lines = [line.rstrip("\\ ") for line in lock.read_text().splitlines() if line[:1].isalnum()]
    found = [Requirement(line) for line in lines]
    return {
        each.name: str(each.specifier).removeprefix("==")
        for each in found
        if each.marker is None or each.marker.evaluate()
    }
