"""`make audit`: known vulnerabilities of what the locks name, by pip-audit.

Exits non-zero when there is one. When the advisories can't be reached, it says so and that nothing
was checked, and exits with 0: a check that needs the network must not stop work without it.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP_AUDIT = ROOT / ".venv-tools" / "bin" / "pip-audit"
# What is served is cut from the first.
LOCKS = ("develop.txt", "tools.txt", "bench.txt")
TIMEOUT_S = 300


def main() -> int:
    """Check each lock; the exit status."""
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
            why = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            return say(f"{lock.name}: not checked, is the network away? {why[0]}")
        packages = json.loads(report.read_text())["dependencies"]
    checked = [package for package in packages if "skip_reason" not in package]
    if not checked:
        return say(f"{lock.name}: not checked: the advisories of no package could be reached")
    found = [(package, each) for package in checked for each in package["vulns"]]
    for package, each in found:
        mended = ", ".join(each["fix_versions"]) or "no version"
        say(f"{package['name']} {package['version']}: {each['id']}, mended in {mended}")
    say(f"{lock.name}: {len(checked)} of {len(packages)} packages checked, {len(found)} findings")
    return 1 if found else 0


def say(line: str) -> int:
    """Print a line; 0, so that saying it is not a failure."""
    sys.stdout.write(f"audit: {line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
