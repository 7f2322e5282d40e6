"""Wall clocks for a whole service: one that a test moves, and the machine's own, shifted."""

import ctypes
import mmap
import os
import subprocess
from pathlib import Path
from typing import Final

from tests.support.tools import tool

_CUSTOMIZED: Final = Path(__file__).with_name("owned_clock")
_SHIFTED: Final = Path(__file__).with_name("shifted_clock.c")


class OwnedClock:
    """The time that every process of a command behind `wrapper` reads, in ms. It stands still."""

    def __init__(self, path: Path, now_ms: int) -> None:
        self._now_ms = _shared(path)
        modules = os.pathsep.join([str(_CUSTOMIZED), str(_CUSTOMIZED.parents[2])])
        self.wrapper: Final = ("env", f"TEST_CLOCK={path}", f"PYTHONPATH={modules}")
        self._now_ms.value = now_ms
        self.readings = [now_ms]
        """Every time that it has shown, in order."""

    def move(self, ms: int) -> None:
        """Jump, in either direction."""
        # Told first: what a process reads is always among the readings.
        self.readings.append(self.readings[-1] + ms)
        self._now_ms.value = self.readings[-1]


class ShiftedClock:
    """The machine's wall clock as native code reads it too, off by what the test says.

    `wrapper` runs a command by it. libfaketime does not do: where it is in the way of a wait whose
    end has just passed, that fails (0.9.10: `time.sleep` raises EINVAL). Skips without a compiler.
    """

    def __init__(self, directory: Path) -> None:
        compiler = tool("cc", "no clock can be put")
        library, offset = directory / "shifted_clock.so", directory / "shifted_clock"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SHIFTED)], check=True
        )
        self._offset_ns = _shared(offset)
        self.wrapper: Final = ("env", f"LD_PRELOAD={library}", f"SHIFTED_CLOCK={offset}")

    def shift(self, offset_s: int) -> None:
        """Jump to so many seconds after the machine's own time, or before it."""
        self._offset_ns.value = offset_s * 1_000_000_000


def _shared(path: Path) -> ctypes.c_int64:
    """A number in a new file, for others to map."""
    path.write_bytes(bytes(8))
    with path.open("r+b") as file:
        return ctypes.c_int64.from_buffer(mmap.mmap(file.fileno(), 8))
