"""Room that is kept back on the volume of the log, for what gives the log back.

On a volume that the log itself has filled, checkpoint and commitment store need some bytes before
the first segment can be unlinked. Without them the service would stay full after Postgres is back.
"""

import logging
from pathlib import Path
from typing import Final

from app.wal.files import FileSystem

_log = logging.getLogger(__name__)

NAME: Final = "reserve"
# What opening a commitment store may write that was closed by a full disk, twice over.
_BYTES: Final = 16 << 20
_LEAST_BYTES: Final = 1 << 20


class Reserve:
    """A file of nothing but room. Best effort: where it can't be had, the service goes without.

    While it is `released`, the log takes no records, or they would use the room up.
    """

    def __init__(self, files: FileSystem, path: Path) -> None:
        self.released = False
        self._files = files
        self._path = path

    def release(self) -> bool:
        """Give the room to who needs it now; False when there is none to give."""
        try:
            self._files.unlink(self._path)
        except OSError:
            return False
        self.released = True
        return True

    def keep(self) -> bool:
        """Keep room back again, as much as can be had; False when it was released and can't be."""
        size = _BYTES
        while not self._files.exists(self._path) and size >= _LEAST_BYTES:
            if self._allocate(size):
                break
            size //= 2
        if self._files.exists(self._path):
            self.released = False
        return not self.released

    def _allocate(self, size: int) -> bool:
        try:
            fd = self._files.create(self._path)
        except OSError:
            return False
        try:
            self._files.allocate(fd, 0, size)
        except OSError as error:
            _log.debug("can't keep %d bytes back: %s", size, error)
            self._files.unlink(self._path)
            return False
        finally:
            self._files.close(fd)
        return True
