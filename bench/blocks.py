"""What blocks cost: the same load with and without them, interleaved, in one run.

`python bench/blocks.py [ROUNDS]`: 100-entry MessagePack batches of one event each over HTTP/2, 16
in flight, `BLOCK_COMMANDS=*` with signing on, beside the same load with no block commands. Prints
the medians with minimum and maximum, and exits with 1 when the ratio of the medians is below 0.5.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event
from urllib.error import URLError
from urllib.request import urlopen

import psutil

_HERE = Path(__file__).parent
_LEAST_RATIO = 0.5
_LOAD = ("400", "100", "16")
_READY_S = 60


@contextmanager
def serving(directory: Path, **settings: str) -> Iterator[str]:
    """The service on a fresh data directory; yields its URL."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("JOURNAL_")}
    environ |= {f"JOURNAL_{name}": text for name, text in settings.items()}
    environ |= {
        "JOURNAL_DATA_DIR": str(directory),
        "JOURNAL_PORT": "0",
        "JOURNAL_LOG_LEVEL": "error",
    }
    journal = Path(sys.executable).with_name("journal")
    process = subprocess.Popen([journal, "serve"], env=environ)
    try:
        yield ready_url(process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def ready_url(process: "subprocess.Popen[bytes]") -> str:
    """Wait until the service is ready."""
    pause = Event()
    for _ in range(_READY_S * 10):
        for child in psutil.Process(process.pid).children():
            for connection in child.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    url = f"http://127.0.0.1:{connection.laddr.port}"
                    try:
                        with urlopen(f"{url}/readyz", timeout=5):
                            return url
                    except URLError:
                        pass
        pause.wait(0.1)
    raise SystemExit("the service did not get ready")


def measure(url: str) -> float:
    """Entries a second of one load."""
    command = [sys.executable, str(_HERE / "load.py"), url, *_LOAD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["entries_per_s"])


def main(rounds: int) -> int:
    """Measure both, interleaved; returns the exit status."""
    results: dict[str, list[float]] = {"without blocks": [], "with blocks": []}
    with tempfile.TemporaryDirectory() as scratch:
        key = Path(scratch) / "cold.key"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32))
        blocks = {"BLOCK_COMMANDS": "*", "COLD_KEY_FILE": str(key)}
        plain, full = Path(scratch) / "plain", Path(scratch) / "full"
        with (
            serving(plain, BLOCK_COMMANDS="NoSuchCommand") as without,
            serving(full, **blocks) as url,
        ):
            for _ in range(rounds):
                results["without blocks"].append(measure(without))
                results["with blocks"].append(measure(url))
    for name, rates in results.items():
        print(f"{name:16} {median(rates):9.0f} entries/s ({min(rates):.0f} to {max(rates):.0f})")
    ratio = median(results["with blocks"]) / median(results["without blocks"])
    print(f"ratio            {ratio:9.2f} (at least {_LEAST_RATIO})")
    return 0 if ratio >= _LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
