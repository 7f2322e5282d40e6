"""Python programs that begin with their modules loaded: loading them is most of what they cost.

Each is a process of its own: the fork of one that has loaded the modules and done nothing else.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Final, Self

_STREAMS: Final = ("stdin", "stdout", "stderr")
# Forks until it is told no more; what goes on behind the loop is a fork, with its order.
_SERVER: Final = """
import gc, json, os, sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
for number, path in enumerate(order["streams"]):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.stdin = open(0, closefd=False)
os.environ.clear()
os.environ.update(order["environ"])
os.umask(order["umask"])
sys.argv = ["-c", *order["arguments"]]
exec(order["code"], {"__name__": "__main__"})
"""


class Preloaded:
    """Runs programs of which `modules` are loaded already, from `directory`, one at a time."""

    def __init__(self, directory: Path, *modules: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, *modules],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate(timeout=60)

    def run(
        self, code: str, *arguments: str, stdin: bytes, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        """As `subprocess.run` does, in a session of its own, with this environment alone."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        umask = os.umask(0)
        os.umask(umask)
        with TemporaryDirectory() as directory:
            streams = [Path(directory, name) for name in _STREAMS]
            for stream, content in zip(streams, (stdin, b"", b""), strict=True):
                stream.write_bytes(content)
            order = {
                "code": code,
                "arguments": arguments,
                "environ": dict(environ),
                "umask": umask,
                "streams": [str(stream) for stream in streams],
            }
            print(json.dumps(order), file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            _, output, errors = (stream.read_bytes() for stream in streams)
        return subprocess.CompletedProcess([*arguments], status, output, errors)
