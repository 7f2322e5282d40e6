"""In CI, what whole classes of faults need can't be missing without a test that fails."""

import re
from pathlib import Path

import pytest

from tests.support.tools import REQUIRED, tool, unavailable

CI = Path(__file__).parents[2] / ".ci" / "run"


def test_what_ci_needs_is_required_there(monkeypatch: pytest.MonkeyPatch) -> None:
    [names] = re.findall(rf'^export {REQUIRED}="(.+)"$', CI.read_text(), re.MULTILINE)
    monkeypatch.setenv(REQUIRED, names)
    monkeypatch.setenv("PATH", "")
    for name in ("strace", "mount", "mkfs.ext4", "cc"):
        with pytest.raises(pytest.fail.Exception, match=f"there is no {name}: for this"):
            tool(name, "for this")
    for name in ("ptrace", "mount", "cgroup"):
        with pytest.raises(pytest.fail.Exception, match="not permitted"):
            unavailable(name, "not permitted")


def test_what_is_missing_elsewhere_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is no strace: for this"):
        tool("strace", "for this")
    with pytest.raises(pytest.skip.Exception, match="not permitted"):
        unavailable("mount", "not permitted")
