"""The seed of the crash tests: each run shows it, has it in all processes, and can repeat it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# It draws by chance, and stops after the first state.
CRASH_TEST = "tests/crash/test_crash_states.py::test_every_crash_state_recovers_and_goes_on"
NO_TEST = "--ignore-glob=*/test_*"


def seeds_shown(*arguments: str, **environ: str) -> list[str]:
    """Every seed in the output of a run of pytest, of whose tests that pass it shows all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=kept | {"CRASH_STATES": "1", "CRASH_SEED": ""} | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    allowed = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert run.returncode in allowed, run.stdout + run.stderr
    return re.findall(r"^CRASH_SEED=(\d+)$", run.stdout, re.MULTILINE)


def test_each_run_shows_the_seed_that_its_tests_draw_from_in_any_process_and_none_without() -> None:
    in_header, in_worker = seeds_shown(CRASH_TEST, "--numprocesses", "1")
    assert in_header == in_worker
    (of_another_run,) = seeds_shown("tests", NO_TEST)
    assert of_another_run != in_header
    assert seeds_shown("tests/unit", NO_TEST) == []


def test_a_seed_that_is_given_is_taken() -> None:
    assert seeds_shown(CRASH_TEST, CRASH_SEED="7") == ["7", "7"]
