"""What a running service asks of the kernel, in order, and faults in that: strace around it."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from tests.support.ends import has_ended
from tests.support.service import Service
from tests.support.tools import tool, unavailable
from tests.support.waiting import wait_for

_CALLS: Final = (
    "pwrite64,fdatasync,fsync,openat,rename,renameat,renameat2,mkdir,mkdirat,unlink,ftruncate,"
    "write,writev,sendto,sendmsg"
)
_LINE: Final = re.compile(r"^(?P<thread>\d+) +(?P<rest>.*)$")
_CALL: Final = re.compile(
    r"^(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)(?P<more>.*)$"
)
_UNFINISHED: Final = " <unfinished ...>"
_BEGUN: Final = re.compile(r"^\w+\([^=]*$")
_RESUMED: Final = re.compile(r"^<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)$")


class Syscall(NamedTuple):
    """A call. `began` and `ended` are places in the order of all beginnings and endings."""

    thread: int
    name: str
    arguments: str
    result: int
    began: int
    ended: int

    @property
    def path(self) -> str:
        """The file of the first argument, a descriptor."""
        return self.arguments.partition("<")[2].partition(">")[0]


def trace(service: Service, output: Path, *faults: str) -> None:
    """Let `service` run under strace from its next start on; `faults` are injections of strace.

    Counts of an injection are those of each thread by itself. Skips where strace can't be used.
    """
    # Only the calls asked for stop a thread (--seccomp-bpf): the others run at full speed.
    options = ("--seccomp-bpf", "-qq", "-s", "1000000", "-e", f"trace={_CALLS}")
    injections = [part for fault in faults for part in ("-e", f"inject={fault}")]
    service.wrapper = strace(*options, *injections, "-o", str(output))


def strace(*options: str) -> tuple[str, ...]:
    """A command that runs another under strace. Skips where it can't be used."""
    program = tool("strace", "system calls can't be observed, nor fail")
    # As a detached tracer (-D), so that what is traced stays a child of the test.
    command = (program, "-D", "-f", "-y", *options)
    probe = [program, "-f", "--seccomp-bpf", "-o", "/dev/null", "true"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        unavailable("ptrace", f"strace can't trace here: {tried.stderr.strip()}")
    return command


def trace_loaded(service: Service, output: Path, *options: str) -> None:
    """Likewise with these options of strace alone, save for the programs that `service` executes.

    It has the program loaded already, which takes a third of the time. But each of its calls stops
    a thread: one that makes many is better traced as a command. Its trace is whole when it has
    ended. A start skips the test where strace can't be used.
    """
    service.attach = partial(_attach, output=output, options=("-b", "execve", *options))


@contextmanager
def attached(pid: int, output: Path, *options: str) -> Iterator[None]:
    """Run strace on a process that runs, up to the end of the block. Skips where it can't be used.

    If the process has ended by then, all of its trace is there.
    """
    process = psutil.Process(pid)
    with _attach(pid, output, options) as tracer:
        try:
            yield
            if has_ended(process):
                tracer.wait(30)
        finally:
            # Asked to end, strace would wait for threads that are dead but for it.
            tracer.kill()


@contextmanager
def holding(pid: int, output: Path, call: str) -> Iterator[None]:
    """Trace a running process, and let it begin no call of this name before the end of the block.

    What was held is done after all. Skips where strace can't be used.
    """
    for_ever = f"inject={call}:delay_enter=3600000000"
    with attached(pid, output, "-s", "1000000", "-e", f"trace={_CALLS}", "-e", for_ever):
        yield


def _attach(pid: int, output: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Strace on a process and all that it will start, once it misses none of their calls.

    It ends when all of them have.
    """
    program = tool("strace", "system calls can't be observed, nor fail")
    messages = output.with_name(f"{output.name}.messages")
    with messages.open("wb") as log:
        tracer = subprocess.Popen(
            [program, "-f", "-y", *options, "-o", str(output), "-p", str(pid)], stderr=log
        )

    def has_attached() -> bool:
        return f"Process {pid} attached" in messages.read_text()

    wait_for(lambda: has_attached() or tracer.poll() is not None, "the tracer is there")
    if not has_attached():
        unavailable("ptrace", f"strace can't attach here: {messages.read_text().strip()}")
    return tracer


def read_trace(output: Path) -> list[Syscall]:
    """The calls of a service that has ended, in the order of their beginnings."""
    wait_for(lambda: "\n" in output.read_text("utf-8", "replace"), "the tracer writes")
    return sorted(_calls(output), key=lambda call: call.began)


def _calls(output: Path) -> Iterator[Syscall]:
    begun: dict[int, tuple[int, str]] = {}
    for place, line in enumerate(output.read_text("utf-8", "replace").splitlines()):
        parts = _LINE.match(line)
        if parts is None:
            continue
        thread, text, began = int(parts["thread"]), parts["rest"], place
        if text.endswith(_UNFINISHED):
            begun[thread] = (place, text.removesuffix(_UNFINISHED))
            continue
        resumed = _RESUMED.match(text)
        if resumed is not None:
            if thread not in begun:
                continue
            began, start = begun.pop(thread)
            text = start + resumed["rest"]
        call = _CALL.match(text)
        if call is not None and call["result"] != "?":
            yield Syscall(
                thread, call["name"], call["arguments"], int(call["result"]), began, place
            )
        elif call is not None or _BEGUN.match(text):
            begun[thread] = (began, text)
    for thread, (place, text) in begun.items():
        # It never came back: the process was killed within it.
        name, _, arguments = text.partition("(")
        yield Syscall(thread, name, arguments, -1, place, 2**62)
