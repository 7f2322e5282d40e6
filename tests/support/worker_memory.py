"""The peak memory of a process of the service, from the kernel (proc(5))."""

from pathlib import Path


class WorkerMemory:
    """How much more memory a process came to take, at its worst, since this was made."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")
        (self._folder / "clear_refs").write_text("5")  # VmHWM falls back to VmRSS
        self._before_bytes = self._read("VmRSS")

    @property
    def extra_bytes(self) -> int:
        return self._read("VmHWM") - self._before_bytes

    def _read(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self._folder}/status has no {name}")
