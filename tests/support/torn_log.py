"""What a crash leaves for a recovery to do, as bad as it gets."""

import shutil
from pathlib import Path
from typing import Final

_ANNOUNCED_BYTES: Final = 6000
_LEFT_BYTES: Final = 3000


def tear(data_dir: Path) -> tuple[str, int]:
    """Add to what a killed service has left a torn record and drafts, and take its store away.

    Returns the name of the last segment, and the offset from which on it is torn.
    """
    wal_dir = data_dir / "wal"
    last = max(wal_dir.glob("*.wal"))
    end = int(last.stem) + last.stat().st_size
    with last.open("ab") as segment:
        segment.write(_ANNOUNCED_BYTES.to_bytes(4, "little") + bytes(_LEFT_BYTES))
    draft = wal_dir / f"{last.name}.tmp"
    draft.touch(mode=0o600)
    draft.write_bytes(b"a draft")
    (data_dir / "checkpoint.json.tmp").write_bytes(b"{")
    shutil.rmtree(data_dir / "commitments")
    return last.name, end
