"""The command line: what it prints, where, and with which exit code."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from inspect import cleandoc
from pathlib import Path
from uuid import UUID, uuid5

import click
import pytest
from click.testing import CliRunner, Result

from app import server
from app.cli import main
from app.feed import COLUMNS, FEED_NAMESPACE
from app.settings import Settings, setting_name
from tests.support.h2_service import Cut, H2Service, h2_service, problem


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, without settings; what a command sets is gone with the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOURNAL_")}
    monkeypatch.setattr(os, "environ", kept)
    return kept


@pytest.fixture
async def service() -> AsyncIterator[H2Service]:
    async with h2_service() as running:
        yield running


@pytest.fixture
def feed(tmp_path: Path) -> Path:
    """A feed of 1005 rows, hence 1006 entries."""
    rows = [f"1,{number},{number},A,B,4799000000000,2,7,0" for number in range(1, 1006)]
    path = tmp_path / "feed.csv"
    path.write_text("\n".join([",".join(COLUMNS), *rows, ""]))
    return path


def run(*arguments: str | Path, **options: str) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), **options)  # type: ignore[arg-type]


async def run_beside(*arguments: str | Path, **options: str) -> Result:
    """Run a command while the test's loop serves."""
    return await asyncio.to_thread(run, *arguments, **options)


def summary(result: Result) -> dict[str, str]:
    return dict(line.rsplit(maxsplit=1) for line in result.stdout.splitlines())


def test_help_says_what_it_is_and_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for text in ("write-ahead", "journal serve", *main.commands):
        assert text in result.stdout
    # The examples are one a line, each as it is typed.
    assert "  journal replay feed.csv.gz\n" in result.stdout
    assert "\\b" not in result.stdout


def commands(group: click.Group, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, under the words that call it."""
    yield names, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        elif command is not None:
            yield (*names, name), command


def test_no_help_runs_an_example_or_a_row_of_a_table_into_a_sentence() -> None:
    """What is indented stands on a line of its own, as it is typed."""
    found = 0
    for names, command in commands(main):
        shown = run(*names, "--help").stdout.splitlines()
        lines = cleandoc(command.help or "").splitlines()
        indented = [line for line in lines if line.startswith("  ")]
        assert [line for line in indented if f"  {line}" not in shown] == [], names
        found += len(indented)
    assert found


def test_version_is_printed() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("journal ")


def test_serve_has_an_option_for_every_setting_with_its_default() -> None:
    text = " ".join(run("serve", "--help").stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert setting_name(name) in text
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            assert f"(default: {field.default}" in text
    assert "[strict|tolerant]" in text
    assert "every user of this machine sees the option: leave a password to PGPASSFILE" in text
    assert "--persist-digests / --no-persist-digests" in text


def test_options_of_serve_win_over_the_environment_and_reach_its_processes(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    served: list[Settings] = []

    def serve(settings: Settings) -> int:
        served.append(settings)
        return 3

    monkeypatch.setattr(server, "run", serve)
    environ |= {"JOURNAL_PORT": "9000", "JOURNAL_ENVIRONMENT": "staging"}
    result = run("serve", "--port", "9100", "--wal-tail", "tolerant", "--no-persist-digests")
    assert result.exit_code == 3
    (settings,) = served
    assert (settings.port, settings.environment) == (9100, "staging")
    assert (settings.wal_tail, settings.persist_digests) == ("tolerant", False)
    assert Settings() == settings


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["serve", "--port", "99999"], "JOURNAL_PORT='99999'"),
        (["serve", "--wal-segment-bytes", "lots"], "JOURNAL_WAL_SEGMENT_BYTES='lots'"),
        (["serve", "--host", "0.0.0.0"], "loopback"),
        (["serve", "--data-dir", "a$b"], "JOURNAL_DATA_DIR='a$b'"),
        (["migrate", "--database-url", "mysql://x"], "JOURNAL_DATABASE_URL='mysql://x'"),
        (["adopt", "--environment", "a b"], "JOURNAL_ENVIRONMENT='a b'"),
        (["migrate", "--grant-to", ""], "--grant-to=''"),
        (["migrate", "--grant-to", "ä" * 32], "1 to 63 printable bytes"),
        (["migrate", "--grant-to", "a", "--print-grants", "a"], "one of both is allowed"),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_code_2(arguments: list[str], named: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("journal: ")
    assert named in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["flush", "--timeout-s", "nan"],
        ["post", "--give-up-after", "nan", "-"],
        ["replay", "--give-up-after", "nan", __file__],
    ],
)
def test_a_time_that_is_no_number_is_refused(arguments: list[str]) -> None:
    result = run(*arguments, "--url", "http://127.0.0.1:1", input='{"entries": []}')
    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[1]}': 'nan' is not a number" in result.stderr


def test_a_setting_that_does_not_exist_is_not_ignored(environ: dict[str, str]) -> None:
    environ["JOURNAL_WAL_TAYL"] = "strict"
    result = run("serve")
    assert (result.exit_code, "JOURNAL_WAL_TAYL" in result.stderr) == (2, True)


@pytest.mark.parametrize("password", ["", "secr\nt", "sécret"])
def test_a_password_that_postgres_could_take_for_another_is_refused_and_not_shown(
    environ: dict[str, str], password: str
) -> None:
    environ["JOURNAL_ROLE_PASSWORD"] = password
    result = run("migrate", "--grant-to", "journal")
    assert result.exit_code == 2
    assert result.stderr.startswith("journal: JOURNAL_ROLE_PASSWORD: ")
    assert result.stderr.count("\n") == 1
    assert not password or password not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["migrate"], ["tokens", "list"], ["wal", "inspect"], ["commitments", "rebuild"]]
)
def test_a_command_that_does_not_listen_needs_no_leave_to(
    environ: dict[str, str], tmp_path: Path, arguments: list[str]
) -> None:
    environ |= {
        "JOURNAL_HOST": "0.0.0.0",
        "JOURNAL_DATA_DIR": str(tmp_path),
        "JOURNAL_DATABASE_URL": f"postgresql:///x?host={tmp_path}",
    }
    result = run(*arguments)
    assert result.exit_code > 0
    assert "HOST" not in result.stderr


def test_a_database_that_is_away_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run("migrate", "--database-url", f"postgresql:///x?host={tmp_path}")
    assert result.exit_code == 1
    assert result.stderr.startswith("journal: ")
    assert result.stderr.count("\n") == 1


def test_adopt_does_nothing_without_a_yes(tmp_path: Path) -> None:
    result = run("adopt", "--data-dir", tmp_path / "data", input="n\n")
    assert result.exit_code == 1
    assert "never reached Postgres" in result.stdout
    assert not (tmp_path / "data").exists()


async def test_replay_journals_the_feed_and_notes_each_acknowledgement(
    service: H2Service, feed: Path, tmp_path: Path
) -> None:
    acks = tmp_path / "acks"
    result = await run_beside(
        "replay", "--url", service.url, "--in-flight", "1", "--acks", acks, feed
    )
    assert result.exit_code == 0, result.output
    found = summary(result)
    assert (found["entries"], found["duplicates"], found["retries"]) == ("1,006", "0", "0")
    assert found["requests"] == "11"
    assert float(found["ack p50 ms"]) <= float(found["ack p99 ms"])
    names = [str(number) for number in range(1, 1001)] + ["tick 1000"]
    names += [str(number) for number in range(1001, 1006)]
    expected = [f"{uuid5(FEED_NAMESPACE, name)} {id_}" for id_, name in enumerate(names, 1)]
    assert acks.read_text().splitlines() == expected


async def test_a_second_replay_reports_every_entry_a_duplicate(
    service: H2Service, feed: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    await run_beside("replay", "--url", service.url, "--acks", first, feed)
    result = await run_beside(
        "replay", "--url", service.url, "--acks", second, "--batch", "7", feed
    )
    assert result.exit_code == 0
    assert summary(result)["duplicates"] == summary(result)["entries"] == "1,006"
    assert sorted(first.read_text().splitlines()) == sorted(second.read_text().splitlines())


async def test_replay_goes_on_through_lost_connections(
    service: H2Service, feed: Path, tmp_path: Path
) -> None:
    acks = tmp_path / "acks"
    service.faults = [Cut.BEHIND, problem(503, retriable=True), Cut.BEFORE, Cut.BEHIND] * 3
    result = await run_beside("replay", "--url", service.url, "--acks", acks, feed)
    assert result.exit_code == 0, result.output
    assert summary(result)["entries"] == "1,006"
    noted = [line.split() for line in acks.read_text().splitlines()]
    assert {UUID(uuid): int(id_) for uuid, id_ in noted} == service.command_ids
    assert len(noted) == 1006
    assert int(summary(result)["retries"]) > 0


async def test_limit_ends_a_replay(service: H2Service, feed: Path) -> None:
    result = await run_beside("replay", "--url", service.url, "--limit", "250", feed)
    assert result.exit_code == 0
    assert len(service.command_ids) == 250


async def test_replay_gives_up_with_a_summary_and_exit_code_1(feed: Path) -> None:
    async with h2_service() as service:
        pass
    result = await run_beside("replay", "--url", service.url, "--give-up-after", "0.2", feed)
    assert result.exit_code == 1
    assert result.stderr.startswith("journal: gave up after")
    assert "Traceback" not in result.output
    assert summary(result)["entries"] == "0"


async def test_a_refusal_ends_a_replay_at_once(service: H2Service, feed: Path) -> None:
    service.faults = [problem(409, retriable=False)]
    result = await run_beside("replay", "--url", service.url, "--in-flight", "1", feed)
    assert result.exit_code == 1
    assert result.stderr == "journal: 40901: as asked for\n"
    assert len(service.bodies) == 1


async def test_a_bad_row_ends_a_replay_with_its_number(service: H2Service, feed: Path) -> None:
    feed.write_text(feed.read_text().replace("1,150,150,A", "1,150,150,Z"))
    result = await run_beside("replay", "--url", service.url, feed)
    assert result.exit_code == 1
    assert f"{feed}: row 150: action 'Z'" in result.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What runs in the background of a shell ignores SIGINT, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
async def test_ctrl_c_ends_a_replay_with_the_summary_so_far(service: H2Service, feed: Path) -> None:
    waiting = asyncio.Event()
    service.on_request = lambda: waiting.set() if len(service.bodies) == 3 else None
    service.faults = [None, None, Cut.SILENT]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from app.cli import main; main()",
        *("replay", "--url", service.url, "--in-flight", "1", str(feed)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await asyncio.wait_for(waiting.wait(), 30)
    process.send_signal(signal.SIGINT)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert "entries              200" in stdout.decode()
    assert stderr.decode() == "interrupted\n"


async def test_post_sends_json_and_prints_the_acknowledgement(service: H2Service) -> None:
    uuid = UUID(int=5)
    body = json.dumps({"entries": [{"request_uuid": str(uuid)}]})
    result = await run_beside("post", "--url", service.url, "-", input=body)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["first_command_id"] == service.command_ids[uuid] == 1
    assert service.bodies == [body.encode()]


async def test_checkpoint_and_flush_print_the_checkpoint(service: H2Service) -> None:
    for arguments in (["checkpoint"], ["flush", "--timeout-s", "1"]):
        result = await run_beside(*arguments, "--url", service.url)
        assert json.loads(result.stdout)["replication"] == "catching_up"


@pytest.mark.parametrize(
    "arguments",
    [["replay", "/does/not/exist"], ["checkpoint", "--url", "ftp://x"], ["nothing"], ["post"]],
)
def test_usage_errors_have_exit_code_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
