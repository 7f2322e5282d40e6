"""The system calls of a service that touch its data directory, and a fault in one of them."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.service import Service
from tests.support.syscalls import Syscall, attached, read_trace, strace, trace_loaded
from tests.support.waiting import wait_for

# All by which files are opened, changed and synced; reading changes nothing.
_CALLS: Final = (
    "openat,pwrite64,pwritev,pwritev2,write,writev,fdatasync,fsync,sync_file_range,rename,renameat,"
    "renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,fallocate,ftruncate,truncate,fchmod,"
    "chmod,fchmodat,flock,io_uring_enter"
)
_KILLED: Final = "+++ killed by SIGKILL +++"
_IO_URING: Final = "io_uring_enter"
_QUOTED: Final = re.compile(r'"([^"]*)"')
_DIGITS: Final = re.compile(r"\d+")


class DataCall(NamedTuple):
    """The `nth` call of this name with this path, relative to the data directory, by one thread."""

    name: str
    path: str
    nth: int
    changes: bool
    punches: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        """Calls of the same kind do the same to files of the same kind."""
        return "punch" if self.punches else self.name, kind_of_path(self.path)

    @property
    def of_store(self) -> bool:
        """Whether the file is one of the commitment store's, which RocksDB keeps."""
        return self.path.startswith("commitments/")

    def __str__(self) -> str:
        return f"{self.name}({self.path}) number {self.nth}"


def record(service: Service, output: Path, *, busy: bool = False) -> None:
    """Let the service run from its next start on so that `data_calls` can read what it did.

    One that is `busy` is traced with all programs that it executes: its replication reads the log.
    """
    _trace(service, output, "-e", f"trace={_CALLS}", busy=busy)


def inject(service: Service, output: Path, call: DataCall, fault: str) -> None:
    """Put a fault of strace, such as `signal=SIGKILL`, in the place of one call."""
    inject_at(service, output, call.name, f"{fault}:when={call.nth}", call.path)


def inject_at(
    service: Service, output: Path, names: str, fault: str, *paths: str, busy: bool = False
) -> None:
    """Likewise for all the calls of these names, comma separated, on `paths`, as its `when` says.

    Calls are counted by thread and name. One that is `busy` can't be killed so.
    """
    places = () if names == _IO_URING else paths
    _trace(
        service,
        output,
        *(part for path in places for part in ("-P", str(service.data_dir / path))),
        *("-e", f"trace={names}", "-e", f"inject={names}:{fault}"),
        busy=busy,
    )


@contextmanager
def recording(service: Service, output: Path) -> Iterator[Callable[[], list[DataCall]]]:
    """Record what the process that owns the log does from now on to its end, in the block.

    What is given tells of it, behind the block.
    """
    with attached(service.worker_pid, output, "-s", "16", "-e", f"trace={_CALLS}"):
        yield lambda: _numbered(_on_data(service, output))


@contextmanager
def killing(service: Service, output: Path, call: DataCall) -> Iterator[Callable[[], bool]]:
    """Kill that process in the place of a call that was recorded so.

    What is given tells whether that has come to pass, behind the block.
    """
    options = ("-P", str(service.data_dir / call.path), "-e", f"trace={call.name}")
    kill = f"inject={call.name}:signal=SIGKILL:when={call.nth}"
    with attached(service.worker_pid, output, *options, "-e", kill):
        yield lambda: _KILLED in output.read_text("utf-8", "replace")


def has_been_killed(service: Service, output: Path) -> bool:
    """Whether the fault was a kill and has come to pass. The service has ended."""
    return _KILLED in _finished(service, output)


def was_injected(service: Service, output: Path) -> bool:
    """Whether an error or a result was injected. The service has ended."""
    return "(INJECTED)" in _finished(service, output)


def data_calls(service: Service, output: Path) -> list[DataCall]:
    """All calls that touched the data directory, in their order. The service has ended."""
    return _numbered(traced_calls(service, output))


def traced_calls(service: Service, output: Path) -> list[tuple[str, Syscall]]:
    """The same with what came of each, by path. The service has ended."""
    _finished(service, output)
    return _on_data(service, output)


def kind_of_path(path: str) -> str:
    """The path without the numbers in it."""
    return _DIGITS.sub("N", path)


def kinds(calls: Iterable[DataCall]) -> dict[tuple[str, str], list[DataCall]]:
    """The calls by their kind, both in their order."""
    found: dict[tuple[str, str], list[DataCall]] = {}
    for call in calls:
        found.setdefault(call.kind, []).append(call)
    return found


def _trace(service: Service, output: Path, *options: str, busy: bool) -> None:
    if busy:
        # Its filter of calls keeps strace 6.1 from delivering signals.
        filtered = ("-q", "--seccomp-bpf", "-s", "16", *options, "-o", str(output))
        service.wrapper = strace(*filtered)
    else:
        trace_loaded(service, output, "-s", "16", *options)


def _finished(service: Service, output: Path) -> str:
    """What the tracer has written when it is done with the service's first process."""
    ended = re.compile(rf"^{service.pid} +\+\+\+ ", re.MULTILINE)

    def text() -> str | None:
        found = output.read_text("utf-8", "replace")
        return found if ended.search(found) else None

    return wait_for(text, "the tracer has written all")


def _on_data(service: Service, output: Path) -> list[tuple[str, Syscall]]:
    found = [(_path(call, service.data_dir), call) for call in read_trace(output)]
    return [(path, call) for path, call in found if path is not None]


def _numbered(calls: list[tuple[str, Syscall]]) -> list[DataCall]:
    counts: dict[tuple[int, str, str], int] = {}
    found = []
    for path, call in calls:
        place = (call.thread, call.name, path)
        counts[place] = counts.get(place, 0) + 1
        punches = "PUNCH_HOLE" in call.arguments
        found.append(DataCall(call.name, path, counts[place], _changes(call), punches))
    return found


def _path(call: Syscall, data_dir: Path) -> str | None:
    """The path of a call, relative to the data directory; None when it is outside."""
    if call.name == _IO_URING:
        return ""
    named = _QUOTED.search(call.arguments)
    by_descriptor = call.arguments[:1].isdigit()
    path = call.path if by_descriptor or named is None else named[1]
    if path == str(data_dir):
        return "."
    prefix = f"{data_dir}/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _changes(call: Syscall) -> bool:
    """Whether a kill right before it leaves other files than one right before the next call."""
    return call.name != "openat" or "O_CREAT" in call.arguments or "O_TRUNC" in call.arguments
