"""The locks: hashes for everything, and nothing older than the versions that mended known holes."""

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT: Final = Path(__file__).parents[2]
LOCKS: Final = sorted((ROOT / "deploy" / "locks").glob("*.txt"))
_PINNED: Final = re.compile(r"^(?P<name>[a-z0-9.-]+)(\[[a-z0-9,-]+\])?==(?P<version>[^ ;]+)")
_HASH: Final = re.compile(r"--hash=sha256:[0-9a-f]{64}")

# The advisory, the package, and a version without the hole: the first, where that is known.
FLOORS: Final = [
    ("CVE-2025-57804", "h2", "4.3.0"),  # request splitting by CR and LF in headers
    ("CVE-2026-71554", "h2", "4.4.1"),  # more than one Host header
    ("CVE-2025-43859", "h11", "0.16.0"),  # lenient chunk endings: request smuggling
    ("CVE-2023-30798", "starlette", "0.25.0"),  # forms of any number of parts
    ("CVE-2023-29159", "starlette", "0.27.0"),  # paths out of StaticFiles
    ("CVE-2024-47874", "starlette", "0.40.0"),  # form parts of any size
    ("CVE-2025-54121", "starlette", "0.47.2"),  # large uploads block the loop
    ("CVE-2025-62727", "starlette", "0.49.1"),  # Range headers in quadratic time
    ("CVE-2026-48710", "starlette", "1.0.1"),  # a Host header changes the path that is checked
    ("PYSEC-2026-248", "starlette", "1.3.0"),  # a path changes the host of request.url
    # One WebSocket header ends a worker; test_connections shows that it does not end ours.
    ("CVE-2026-42544", "granian", "2.8.7"),
]


def pinned(lock: Path) -> dict[str, tuple[Version, str]]:
    """Each package with its version and the text of its entry."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.read_text()):
        match = _PINNED.match(entry)
        assert match is not None, f"{lock.name}: not pinned: {entry[:80]}"
        found[match["name"]] = (Version(match["version"]), entry)
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_is_pinned_with_hashes(lock: Path) -> None:
    entries = pinned(lock)
    assert entries
    assert [name for name, (_, entry) in entries.items() if not _HASH.search(entry)] == []


def test_there_is_a_lock_for_the_image_and_for_development() -> None:
    assert {"image.txt", "serve.txt", "develop.txt"} <= {lock.name for lock in LOCKS}


@pytest.mark.parametrize(("advisory", "name", "floor"), FLOORS, ids=str)
def test_no_lock_falls_below_a_version_that_mended_a_hole(
    advisory: str, name: str, floor: str
) -> None:
    versions = {lock.name: pinned(lock)[name][0] for lock in LOCKS if name in pinned(lock)}
    assert "image.txt" in versions
    low = {lock: str(version) for lock, version in versions.items() if version < Version(floor)}
    assert low == {}, f"{name} before {floor} has {advisory}"


@pytest.mark.parametrize(("advisory", "name", "floor"), FLOORS, ids=str)
def test_nor_does_an_installation_without_a_lock(advisory: str, name: str, floor: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    lowest = [Version(each.version) for each in asked[name] if each.operator == ">="]
    assert lowest >= [Version(floor)], f"{name} before {floor} has {advisory}"
