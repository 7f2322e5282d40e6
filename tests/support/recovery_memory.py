"""Recovers a data directory, and says how much memory that took: a process's peak resident bytes.

`python -m tests.support.recovery_memory DATA_DIR`: a process of its own, as a peak never falls.
"""

import subprocess
import sys
from pathlib import Path

from app.service.opening import open_log
from app.settings import Settings
from app.wal.files import FileSystem
from app.wal.sync import FdatasyncSyncer


def peak_bytes(data_dir: Path) -> tuple[int, int]:
    """Recover `data_dir` in a child: its peak in bytes, and how many entries are to replicate."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(data_dir)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    peak, entries = done.stdout.split()
    return int(peak), int(entries)


def _recover(data_dir: Path) -> str:
    files = FileSystem()
    opened = open_log(files, Settings(data_dir=data_dir), FdatasyncSyncer(files), None, lambda: 0)
    return f"{_peak_bytes()} {opened.entries_to_replicate}"


def _peak_bytes() -> int:
    """Of this program alone: `ru_maxrss` also counts the process that it was forked from."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    sys.stdout.write(_recover(Path(sys.argv[1])))
