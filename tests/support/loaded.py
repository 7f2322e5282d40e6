"""A service that begins with the program loaded: loading it is most of what a start costs.

It is the fork of a process that has loaded it, and goes on as `journal` does from there.
"""

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from threading import Lock
from typing import Final

from app.cli import main

_FORKS: Final = multiprocessing.get_context("forkserver")
_PROGRAM: Final = ["app.cli.operator", "app.server", "app.main", "tests.support.compiled"]
_FORKS.set_forkserver_preload([*_PROGRAM, __name__])
# An exit status can be read once, by whichever thread asks, also when it starts another process.
_ASKING: Final = Lock()


Attach = Callable[[int], subprocess.Popen[bytes]]
"""Attaches a tracer to the process with this id; what it gives ends when all traced ones have."""


class LoadedService:
    """`journal serve` with this environment alone; the rest is as of a `Popen`.

    A tracer sees all that it does from there on. It has ended when its tracer has, too.
    """

    def __init__(
        self, environ: Mapping[str, str], output: Path, attach: Attach | None = None
    ) -> None:
        gate, opener = _FORKS.Pipe(duplex=False)
        self._process = _FORKS.Process(target=_serve, args=(gate, dict(environ), output))
        self._tracer: subprocess.Popen[bytes] | None = None
        # Closed without a word, the gate is the end of what waits at it.
        with opener:
            with gate, _ASKING:
                self._process.start()
            assert self._process.pid is not None
            self.pid: Final = self._process.pid
            if attach is not None:
                self._tracer = attach(self.pid)
            opener.send(None)

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative where a signal ended it; None as long as it runs."""
        if self._tracer is not None and self._tracer.poll() is None:
            return None
        return self._status()

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit status. Raises `subprocess.TimeoutExpired`."""
        wait([self._process.sentinel], timeout)
        status = self._status()
        if status is None:
            raise subprocess.TimeoutExpired("journal serve", timeout or 0)
        if self._tracer is not None:
            self._tracer.wait(timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self._status() is None:
            os.kill(self.pid, number)

    def _status(self) -> int | None:
        with _ASKING:
            return self._process.exitcode


def _serve(gate: "Connection[object, object]", environ: dict[str, str], output: Path) -> None:
    # Or what it starts would begin in this way, too.
    multiprocessing.set_start_method(None, force=True)
    os.environ.clear()
    os.environ.update(environ)
    with output.open("ab") as log:
        for standard in (1, 2):
            os.dup2(log.fileno(), standard)
    with gate:
        gate.recv()
    main(["serve"], "journal")
