"""Compiled functions: where they can't be had, and that none is kept when any has changed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.service import compiled

APP = Path(compiled.__file__).parents[1]
# prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN), which MemoryDenyWriteExecute of systemd stands for.
REFUSING = """
import ctypes, logging, sys
logging.basicConfig(level="INFO", stream=sys.stdout)
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) != 0:
    sys.exit("this kernel can't refuse it")
from app.service import compiled
print([compiled.load(name) for name in (compiled.LANES, compiled.GRAMMAR)])
"""


def test_a_system_that_lets_no_memory_hold_new_code_does_without_them() -> None:
    pytest.importorskip("numba", reason="numba has no wheel here")
    ended = subprocess.run(
        [sys.executable, "-c", REFUSING], capture_output=True, text=True, check=False
    )
    if "this kernel can't refuse it" in ended.stderr:
        pytest.skip("kernels before 6.3 can't refuse memory that holds new code")
    assert ended.stderr == ""
    assert "going on without compiled functions" in ended.stdout
    assert ended.stdout.endswith("[None, None]\n")


def test_without_numba_there_are_none() -> None:
    program = "import sys; sys.modules['numba'] = None; from app.service import compiled; "
    program += "print(compiled.load(compiled.GRAMMAR), compiled.load(compiled.LANES))"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "None None\n"


def test_every_module_of_compiled_functions_is_in_the_digest_they_are_kept_under() -> None:
    modules = {
        ".".join(path.relative_to(APP.parent).with_suffix("").parts)
        for path in APP.rglob("*.py")
        if re.search(r"^from app\.compiling import", path.read_text(), re.MULTILINE)
    }
    assert modules == {
        compiled.LANES,
        compiled.GATHERING,
        compiled.VALUES,
        compiled.RECOGNITION,
        compiled.TRANSCRIPTION,
    }
    assert set(compiled.COMPILED) == modules
