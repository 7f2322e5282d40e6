"""The image's bill of materials names what is in it, as scanners for known holes look it up."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.audit_tools import ROOT, copied, lend_tools, locked

IMAGE_LOCK: Final = ROOT / "deploy" / "locks" / "image.txt"
_OF_THE_IMAGE: Final = re.compile(
    r"^ +(?P<command>/sbom/tools/bin/cyclonedx-py .*?[^\\])$", re.MULTILINE | re.DOTALL
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    names = ("Makefile", "pyproject.toml", "deploy/locks/image.txt")
    project = copied(*names, to=tmp_path)
    lend_tools(project)
    return project


def run(project: Path, *command: str) -> None:
    done = subprocess.run(
        command, cwd=project, check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def components(bill: Path) -> dict[str, str]:
    """Each component with its version, after checking what scanners need to know it by."""
    content: dict[str, Any] = json.loads(bill.read_text())
    assert content["bomFormat"] == "CycloneDX"
    assert content["metadata"]["component"]["name"] == "journal"
    for each in content["components"]:
        assert each["purl"].startswith(f"pkg:pypi/{normal(each['name'])}@{each['version']}"), each
    return {normal(each["name"]): each["version"] for each in content["components"]}


def normal(name: str) -> str:
    """A package's name as locks have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_one_of_the_lock_names_every_package_of_the_image_and_no_other(project: Path) -> None:
    # The tools are lent, and not to be made anew.
    run(project, "make", "--assume-old=.venv-tools/stamp", "sbom")
    bill = project / "dist" / "journal.cdx.json"
    assert components(bill) == locked(IMAGE_LOCK)
    first = bill.read_bytes()
    run(project, "make", "--assume-old=.venv-tools/stamp", "sbom")
    assert bill.read_bytes() == first, "it is another one each time"


def test_the_one_in_the_image_names_every_package_that_is_installed(project: Path) -> None:
    """With the command of the Dockerfile, on the environment of this test: it holds more."""
    found = _OF_THE_IMAGE.search((ROOT / "Dockerfile").read_text())
    assert found is not None
    here = {
        "/sbom/tools/bin/cyclonedx-py": ".venv-tools/bin/cyclonedx-py",
        "/opt/journal/bin/python": sys.executable,
        "/sbom/journal.cdx.json": "journal.cdx.json",
    }
    command = shlex.split(found["command"].replace("\\\n", " "))
    assert here.keys() <= set(command)
    # The tool takes ten seconds to check what it wrote against the standard's schema; not twice.
    run(project, *(here.get(part, part) for part in command), "--no-validate")
    assert locked(IMAGE_LOCK).items() <= components(project / "journal.cdx.json").items()
