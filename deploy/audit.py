"""`make audit`: known vulnerabilities of what the locks name, by pip-audit.

Its arguments are a command that sets pip-audit up. Exits with 1 when there is a vulnerability, with
2 when one of both fails. When the network is away, it says so and that nothing was checked, and
exits with 0: a check that needs the network must not stop work without it.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP_AUDIT = ROOT / ".venv-tools" / "bin" / "pip-audit"
# What is served is cut from the first.
LOCKS = ("develop.txt", "tools.txt", "bench.txt")
TIMEOUT_S = 300
FOUND, FAILED = 1, 2
# How pip-audit, requests below it, and pip say that they have not reached anybody.
AWAY = re.compile(
    r"^(.*Could not connect to "
    r"|([a-z0-9_]+\.)*(ConnectionError|ConnectTimeout|ReadTimeout|ProxyError): "
    r"|.*connection broken by '(ConnectTimeout|NameResolution|NewConnection|Proxy|ReadTimeout)Error"
    r").*",
    re.MULTILINE,
)


def main(set_up: list[str]) -> int:
    """Check each lock; the exit status."""
    if set_up:
        done = subprocess.run(set_up, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return unchecked("the locks", done.stderr)
    return max([audit(ROOT / "deploy" / "locks" / name) for name in LOCKS])


def audit(lock: Path) -> int:
    """Check one lock, and say what was found."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [PIP_AUDIT, "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
        command += ["--format", "json", "--output", report, "--requirement", lock]
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return say(f"{lock.name}: not checked: no answer within {TIMEOUT_S} s")
        if not report.exists():
            return unchecked(lock.name, done.stderr)
        packages = json.loads(report.read_text())["dependencies"]
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        say(f"{lock.name}: not checked: there are advisories of no package")
        return FAILED
    found = [(package, each) for package in checked for each in package["vulns"]]
    for package, each in found:
        mended = ", ".join(each["fix_versions"]) or "no version"
        say(f"{package['name']} {package['version']}: {each['id']}, mended in {mended}")
    say(f"{lock.name}: {len(checked)} of {len(packages)} packages checked, {len(found)} findings")
    return FOUND if found else 0


def unchecked(what: str, errors: str) -> int:
    """Say why something was not checked; the exit status."""
    away = AWAY.search(errors)
    if away:
        return say(f"{what}: not checked, is the network away? {away[0]}")
    lines = errors.strip().splitlines() or ["no reason given"]
    say(f"{what}: not checked: {lines[-1]}")
    return FAILED


def say(line: str) -> int:
    """Print a line; 0, so that saying it is not a failure."""
    sys.stdout.write(f"audit: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
