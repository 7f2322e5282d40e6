"""`make audit` names what is vulnerable, and tells that from advisories that can't be reached."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

import pytest

from tests.support.audit_tools import copied, lend_tools, locked

LOCKS: Final = ("develop.txt", "tools.txt", "bench.txt")
# In place of pip-audit: what it finds, or why it finds nothing, is beside the lock.
STAND_IN: Final = f"""#!{sys.executable}
import json, signal, sys
from pathlib import Path

given = dict(zip(sys.argv, sys.argv[1:]))
found = json.loads(Path(given["--requirement"]).with_suffix(".json").read_text())
if found == "hangs":
    signal.pause()
if isinstance(found, str):
    sys.exit(found)
Path(given["--output"]).write_text(json.dumps({{"dependencies": found, "fixes": []}}))
sys.exit(any(package.get("vulns") for package in found))
"""
NO_PATIENCE: Final = "import audit; audit.TIMEOUT_S = 0.5; raise SystemExit(audit.main([]))"
CLEAN: Final = [{"name": "h2", "version": "4.4.1", "vulns": []}]
HOLE: Final = {"id": "CVE-2025-62727", "fix_versions": ["0.49.1", "1.0.0"]}
VULNERABLE: Final = [*CLEAN, {"name": "starlette", "version": "0.49.0", "vulns": [HOLE]}]
UNREACHED: Final = {"name": "starlette", "skip_reason": "not found on PyPI"}
NOT_CONNECTED: Final = "Could not connect to PyPI's vulnerability feed"
UNTRUSTED: Final = "requests.exceptions.SSLError: certificate verify failed"
PIP_AWAY: Final = "NewConnectionError('no route to host')': /simple/pip-audit/"
AWAY: Final = "Traceback:\nrequests.exceptions.ConnectionError: no route to host"


class Audited:
    """A copy of the script, in a project whose locks a test writes."""

    def __init__(self, project: Path) -> None:
        self.project = copied("deploy/audit.py", to=project)
        self.locks = project / "deploy" / "locks"
        self.locks.mkdir()

    def run(self, *arguments: str, **environ: str) -> tuple[int, str]:
        """The exit status, and what it says."""
        done = subprocess.run(
            [sys.executable, *(arguments or ["deploy/audit.py"])],
            cwd=self.project,
            env={**os.environ, "XDG_CACHE_HOME": str(self.project / "cache"), **environ},
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stderr == ""
        return done.returncode, done.stdout


@pytest.fixture
def audited(tmp_path: Path) -> Audited:
    return Audited(tmp_path)


def finding(audited: Audited, **found: object) -> Audited:
    """What is found in each lock: in those that are not named, nothing."""
    for name in LOCKS:
        result = found.get(name.removesuffix(".txt"), CLEAN)
        (audited.locks / name).with_suffix(".json").write_text(json.dumps(result))
    program = audited.project / ".venv-tools" / "bin" / "pip-audit"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o700)
    return audited


# -- what is made of a report ----------------------------------------------------------------------


def test_without_a_finding_it_says_how_much_was_checked(audited: Audited) -> None:
    status, said = finding(audited).run()
    assert status == 0
    assert said.splitlines() == [
        f"audit: {name}: 1 of 1 packages checked, 0 findings" for name in LOCKS
    ]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_vulnerable_version_in_any_lock_is_named_and_fails(audited: Audited, lock: str) -> None:
    status, said = finding(audited, **{lock.removesuffix(".txt"): VULNERABLE}).run()
    assert status == 1
    assert "audit: starlette 0.49.0: CVE-2025-62727, mended in 0.49.1, 1.0.0\n" in said
    assert f"audit: {lock}: 2 of 2 packages checked, 1 findings\n" in said


def test_a_hole_that_no_version_mends_is_said_to_have_none(audited: Audited) -> None:
    hole = {"id": "PYSEC-1", "fix_versions": []}
    package = {"name": "h2", "version": "4.4.1", "vulns": [hole]}
    status, said = finding(audited, tools=[package]).run()
    assert status == 1
    assert "audit: h2 4.4.1: PYSEC-1, mended in no version\n" in said


def test_offline_it_says_that_nothing_was_checked_and_does_not_fail(audited: Audited) -> None:
    away = f"ERROR:pip_audit._cli:{NOT_CONNECTED}\nTip: another service"
    status, said = finding(audited, develop=AWAY, tools=AWAY, bench=away).run()
    assert status == 0
    assert said.splitlines() == [
        f"audit: develop.txt: not checked, is the network away? {AWAY.splitlines()[1]}",
        f"audit: tools.txt: not checked, is the network away? {AWAY.splitlines()[1]}",
        f"audit: bench.txt: not checked, is the network away? ERROR:pip_audit._cli:{NOT_CONNECTED}",
    ]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("Traceback:\nModuleNotFoundError: No module named 'pip_audit'", "No module named"),
        ("ERROR:pip_audit._cli:invalid requirement: h2=4", "invalid requirement"),
        (f"Traceback:\n{UNTRUSTED}", "SSLError"),
        ("", "no reason given"),
        ([UNREACHED], "there are advisories of no package"),
    ],
    ids=["installation", "lock", "certificate", "silence", "nothing"],
)
def test_what_fails_with_the_network_there_is_a_failure(
    audited: Audited, fault: object, reason: str
) -> None:
    status, said = finding(audited, tools=fault, bench=AWAY).run()
    assert status == 2
    line = said.splitlines()[1]
    assert line.startswith("audit: tools.txt: not checked: ")
    assert reason in line


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        (f"WARNING: Retrying after connection broken by '{PIP_AWAY}'\nERROR: no version", 0),
        (f"WARNING: Retrying after connection broken by '{UNTRUSTED}'\nERROR: no version", 2),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", 2),
    ],
    ids=["network", "certificate", "hashes"],
)
def test_tools_that_can_not_be_set_up_offline_are_no_failure(
    audited: Audited, errors: str, status: int
) -> None:
    set_up = [sys.executable, "-c", "import sys; sys.exit(sys.argv[1])", errors]
    found, said = finding(audited, develop=VULNERABLE).run("deploy/audit.py", *set_up)
    assert found == status
    assert said.startswith("audit: the locks: not checked")
    assert said.count("\n") == 1


def test_the_tools_are_set_up_first(audited: Audited) -> None:
    finding(audited)
    tool = audited.project / ".venv-tools" / "bin" / "pip-audit"
    moved = tool.rename(tool.with_name("later"))
    status, said = audited.run("deploy/audit.py", "mv", str(moved), str(tool))
    assert (status, said.count("1 of 1 packages checked")) == (0, 3)


def test_an_answer_that_does_not_come_is_no_answer(audited: Audited) -> None:
    away = dict.fromkeys(("develop", "tools", "bench"), "hangs")
    here = str(audited.project / "deploy")
    status, said = finding(audited, **away).run("-c", NO_PATIENCE, PYTHONPATH=here)
    assert status == 0
    assert said.splitlines() == [
        f"audit: {name}: not checked: no answer within 0.5 s" for name in LOCKS
    ]


def test_what_could_not_be_checked_hides_nothing_that_was_found(audited: Audited) -> None:
    status, said = finding(audited, tools=[UNREACHED, *VULNERABLE], bench=AWAY).run()
    assert status == 1
    assert "audit: starlette 0.49.0: CVE-2025-62727" in said
    assert "audit: tools.txt: 2 of 3 packages checked, 1 findings\n" in said
    assert "audit: bench.txt: not checked" in said


# -- with pip-audit itself, and advisories on loopback ---------------------------------------------


@contextmanager
def advisories(*vulnerable: str) -> Iterator[tuple[str, set[str]]]:
    """Answers as osv.dev does, and knows a hole in every version of the packages that are named.

    Its URL, and which packages it was asked about.
    """
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["content-length"])))["package"][
                "name"
            ]
            asked.add(name)
            body = json.dumps({"vulns": [osv(name)]} if name in vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - its name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, name="advisories")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


def osv(name: str) -> dict[str, Any]:
    """An advisory, mended in version 999."""
    events = [{"introduced": "0"}, {"fixed": "999"}]
    package = {"name": name, "ecosystem": "PyPI"}
    affected = {"package": package, "ranges": [{"type": "ECOSYSTEM", "events": events}]}
    return {"id": f"OSV-{name}", "summary": "a hole", "affected": [affected]}


@pytest.fixture
def real(audited: Audited) -> Audited:
    """The script with pip-audit, on the project's own locks."""
    copied(*(f"deploy/locks/{name}" for name in LOCKS), to=audited.project)
    lend_tools(audited.project)
    return audited


def by_osv(url: str) -> dict[str, str]:
    """The settings of pip-audit with which it asks there."""
    return {
        "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
        "PIP_AUDIT_OSV_URL": url,
        "NO_PROXY": "127.0.0.1",
    }


def test_every_package_of_the_locks_is_asked_about_and_the_vulnerable_one_named(
    real: Audited,
) -> None:
    names = {name: locked(real.locks / name).keys() for name in LOCKS}
    with advisories("starlette") as (url, asked):
        status, said = real.run(**by_osv(url))
    assert status == 1, said
    assert asked == set().union(*names.values())
    version = locked(real.locks / "develop.txt")["starlette"]
    assert f"audit: starlette {version}: OSV-starlette, mended in 999\n" in said
    for lock, packages in names.items():
        count = len(packages)
        checked = f"{count} of {count} packages checked, {int('starlette' in packages)} findings"
        assert f"audit: {lock}: {checked}\n" in said


def test_pip_audit_without_its_advisories_is_told_from_a_finding(real: Audited) -> None:
    with advisories() as (url, _):
        pass
    status, said = real.run(**by_osv(url))
    assert status == 0, said
    lines = said.splitlines()
    for name, line in zip(LOCKS, lines, strict=True):
        assert line.startswith(f"audit: {name}: not checked, is the network away? ")
