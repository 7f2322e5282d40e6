"""A short run of the fuzzer on each target, on other inputs every time.

The seed is printed, and `FUZZ_SEED` gives it again; `make fuzz` goes on for longer.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from random import SystemRandom
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
    # With 0 it would choose one itself.
    seed = int(os.environ.get("FUZZ_SEED") or SystemRandom().randrange(1, 2**31))
    print(f"FUZZ_SEED={seed}")  # noqa: T201 - shown with a failure
    options = [f"-runs={RUNS[target]}", f"-seed={seed}", "-max_len=4096", "-timeout=10"]
    done = subprocess.run(
        [*command, *options, f"-artifact_prefix={tmp_path}/"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # It runs some inputs again to see whether they leak, and counts these too.
    counted = re.findall(r"Done (\d+) runs", done.stderr)
    assert [int(count) >= RUNS[target] for count in counted] == [True], done.stderr[-3000:]
