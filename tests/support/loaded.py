"""A service that begins with the program loaded: loading it is most of what a start costs.

It is the fork of a process that has loaded it, and goes on as `journal` does from there.
"""

import multiprocessing
import os
import subprocess
from collections.abc import Mapping
from multiprocessing.connection import wait
from pathlib import Path
from threading import Lock
from typing import Final

from app.cli import main

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["app.cli.operator", "app.server", "app.main", __name__])
# An exit status can be read once, by whichever thread asks, also when it starts another process.
_ASKING: Final = Lock()


class LoadedService:
    """`journal serve` with this environment alone; the rest is as of a `Popen`."""

    def __init__(self, environ: Mapping[str, str], output: Path) -> None:
        self._process = _FORKS.Process(target=_serve, args=(dict(environ), output))
        with _ASKING:
            self._process.start()
        assert self._process.pid is not None
        self.pid: Final = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative where a signal ended it; None as long as it runs."""
        with _ASKING:
            return self._process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status. Raises `subprocess.TimeoutExpired`."""
        wait([self._process.sentinel], timeout)
        status = self.returncode
        if status is None:
            raise subprocess.TimeoutExpired("journal serve", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)


def _serve(environ: dict[str, str], output: Path) -> None:
    # Or what it starts would begin in this way, too.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environ)
    with output.open("ab") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    main(["serve"], "journal")
