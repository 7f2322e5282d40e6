"""A short run of the fuzzer on each target, the same every time; `make fuzz` goes on for longer."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
# How many inputs, so that all take about 20 s together.
RUNS: Final = {
    "request": 10_000,
    "record": 20_000,
    "log": 1_000,
    "checkpoint": 20_000,
    "tokens": 500,
}

pytestmark = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris has no wheel for this Python and machine"
)


@pytest.mark.parametrize("target", RUNS)
def test_hostile_bytes_end_in_a_documented_error(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.attack.fuzzing", target, str(tmp_path / "corpus")]
    options = [f"-runs={RUNS[target]}", "-seed=1", "-max_len=4096", "-timeout=10"]
    done = subprocess.run(
        [*command, *options, f"-artifact_prefix={tmp_path}/"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Done {RUNS[target]} runs" in done.stderr
