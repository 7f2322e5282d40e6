"""`journal replay` as a process of its own, watched through its acknowledgements file."""

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_COMMAND: Final = "from app.cli import main; main()"


class ReplayProcess:
    """Replays `feed` into the service at `url`; killed if it still runs at the end of the block."""

    def __init__(self, url: str, feed: Path, directory: Path, *options: str) -> None:
        self.acks_path = directory / "acks"
        self._output_path = directory / "replay.log"
        self._arguments = ["--url", url, "--acks", str(self.acks_path), *options, str(feed)]
        self._process: subprocess.Popen[bytes] | None = None
        self._counted = self._read = 0

    def __enter__(self) -> Self:
        with self._output_path.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _COMMAND,
                    "replay",
                    "--give-up-after",
                    "300",
                    *self._arguments,
                ],
                stdout=output,
                stderr=output,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._running()
        if process.poll() is None:
            process.kill()
            process.wait()

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self._output_path.read_text()

    @property
    def is_running(self) -> bool:
        """Whether it has entries left."""
        return self._running().poll() is None

    def acknowledged(self) -> int:
        """How many entries have been acknowledged; fails when the replay has failed."""
        assert self._running().poll() in (None, 0), self.output
        if self.acks_path.exists():
            with self.acks_path.open("rb") as acks:
                acks.seek(self._read)
                news = acks.read()
            self._read += len(news)
            self._counted += news.count(b"\n")
        return self._counted

    def pause(self) -> None:
        """Send nothing more for now."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        self._running().send_signal(signal.SIGCONT)

    def summary(self, timeout_s: float = 120) -> dict[str, float]:
        """Wait until all is acknowledged; the numbers of the closing summary."""
        assert self._running().wait(timeout_s) == 0, self.output
        lines = [line.rsplit(maxsplit=1) for line in self.output.splitlines()]
        return {name.strip(): float(number.replace(",", "")) for name, number in lines}

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process
