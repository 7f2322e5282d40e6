"""`checkpoint.json`.

How far the log has been replicated, and from where on it is kept (protocol, section 5).

It follows the progress row in Postgres, which is the truth. `retained_offset` is an addition of
this implementation: everything before it may have been given back, so reading begins there.
"""

from pathlib import Path

import msgspec
from msgspec import Struct

from app.errors import WalFailed
from app.wal.files import FileSystem, UnsyncedName, write_new_file


class Checkpoint(Struct, kw_only=True, frozen=True):
    """How far replication has come: what ends at or before `wal_offset` is in Postgres."""

    wal_id: str
    environment: str
    wal_offset: int
    last_command_id: int
    last_l2_seq: int | None = None
    retained_offset: int = 0


_decoder = msgspec.json.Decoder(Checkpoint)


def read_checkpoint(files: FileSystem, path: Path) -> Checkpoint | None:
    """The checkpoint at `path`.

    None when it is missing or torn. Raises `OSError` when it can't be read.
    """
    if not files.exists(path):
        return None
    return decode_checkpoint(files.read_file(path))


def decode_checkpoint(data: bytes) -> Checkpoint | None:
    """The checkpoint in a file's bytes; None when they are torn."""
    try:
        checkpoint = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    offsets = (checkpoint.wal_offset, checkpoint.retained_offset, checkpoint.last_command_id)
    return checkpoint if min(offsets) >= 0 else None


def write_checkpoint(files: FileSystem, path: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint atomically; file and directory are synced.

    Raises `OSError` where it may be tried again, and `WalFailed` where the directory's sync has
    failed: which checkpoint is durable is not known any more.
    """
    data = msgspec.json.format(msgspec.json.encode(checkpoint), indent=2) + b"\n"
    try:
        write_new_file(files, path, data)
    except UnsyncedName as error:
        raise WalFailed(f"syncing the name of {path.name} failed: {error}") from error
