"""In CI, a tool that it installs itself can't be missing without a test that fails."""

import re
from pathlib import Path

import pytest

from tests.support.tools import REQUIRED, tool

CI = Path(__file__).parents[2] / ".ci" / "run"


def test_what_ci_installs_is_required_there(monkeypatch: pytest.MonkeyPatch) -> None:
    [names] = re.findall(rf'^export {REQUIRED}="(.+)"$', CI.read_text(), re.MULTILINE)
    monkeypatch.setenv(REQUIRED, names)
    monkeypatch.setenv("PATH", "")
    for name in ("strace", "cc"):
        with pytest.raises(pytest.fail.Exception, match=f"there is no {name}: for this"):
            tool(name, "for this")


def test_what_is_missing_elsewhere_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is no strace: for this"):
        tool("strace", "for this")
