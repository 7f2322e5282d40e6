"""A file system of a few MiB, mounted for a test."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from tests.support.tools import tool, unavailable


class FileSystemKind(StrEnum):
    """What a volume is made of."""

    TMPFS = "tmpfs"
    EXT4 = "ext4"


@contextmanager
def small_volume(
    directory: Path,
    kind: FileSystemKind,
    mib: int,
    name: str = "volume",
    image_directory: Path | None = None,
) -> Iterator[Path]:
    """Mount a volume below `directory`, which is on disk. Skips where that is not allowed.

    Its image takes the room that is written to in `image_directory`, or else below `directory`.
    """
    mount_point = directory / name
    mount_point.mkdir()
    source, options = "tmpfs", f"size={mib}m,mode=700"
    if kind is not FileSystemKind.TMPFS:
        make = tool(f"mkfs.{kind}", "no volume can be made")
        image = (image_directory or directory) / "image"
        with image.open("wb") as file:
            file.truncate(mib << 20)
        # Nothing is kept back for root.
        subprocess.run([make, "-q", "-m", "0", str(image)], check=True, capture_output=True)
        source, options = str(image), "loop"
    mount = tool("mount", "no volume can be mounted")
    mounted = subprocess.run(
        [mount, "-t", kind, "-o", options, source, str(mount_point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        unavailable("mount", f"a volume of {kind} can't be mounted here: {mounted.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def enlarge(mount_point: Path, mib: int) -> None:
    """Give a volume of tmpfs that is in use more room."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", str(mount_point)], check=True)
