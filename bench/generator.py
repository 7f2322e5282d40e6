"""The load generator as the harness sees it: a process that is given jobs."""

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.load import Job, Sample

ROOT: Final = Path(__file__).parents[1]


class Generator:
    """One load process, for as long as the `with` block lasts."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def run(self, job: Job) -> Sample:
        """Put a load on and return what it has shown. Raises `RuntimeError` when it fails."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the load generator has no pipes")
        process.stdin.write(msgspec.json.encode(job).decode() + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {process.wait()} over {job}")
        return msgspec.json.decode(line, type=Sample)
