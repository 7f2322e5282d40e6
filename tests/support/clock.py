"""A wall clock for a whole service, which stands still until the test moves it."""

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

_CUSTOMIZED: Final = Path(__file__).with_name("owned_clock")


class OwnedClock:
    """The time that every process started with `environ` reads, in ms."""

    def __init__(self, path: Path, now_ms: int) -> None:
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._now_ms = ctypes.c_int64.from_buffer(mmap.mmap(file.fileno(), 8))
        self.environ: Final = {
            "TEST_CLOCK": str(path),
            "PYTHONPATH": os.pathsep.join([str(_CUSTOMIZED), str(_CUSTOMIZED.parents[2])]),
        }
        self._now_ms.value = now_ms
        self.readings = [now_ms]
        """Every time that it has shown, in order."""

    def move(self, ms: int) -> None:
        """Jump, in either direction."""
        # Told first: what a process reads is always among the readings.
        self.readings.append(self.readings[-1] + ms)
        self._now_ms.value = self.readings[-1]
