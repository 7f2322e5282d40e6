"""Named fail points: where a test lets a process die (etcd's gofail is the model).

`_JOURNAL_FAIL_POINT=NAME[:COUNT]` in the environment ends the process that reaches the point NAME
for the COUNT-th time, 1 by default, with SIGKILL: nothing is flushed, closed or told to anyone.
Without the variable a point costs one comparison. It is for tests alone, and so no setting: the
underscore keeps it apart from those.
"""

import os
import signal
from typing import Final

VARIABLE: Final = "_JOURNAL_FAIL_POINT"

BLOCK_PREPARED: Final = "block-prepared"
"""Writer: the block is made and signed, nothing is written."""
RECORD_APPENDED: Final = "record-appended"
"""Writer: the record is written, not synced."""
RECORD_SYNCED: Final = "record-synced"
"""Writer: the record is durable, its block not applied to the commitment store."""
BLOCK_APPLIED: Final = "block-applied"
"""Writer: the block is applied, nothing is acknowledged."""
BEFORE_COMMIT: Final = "before-commit"
"""Replication: the transaction holds everything, and is not committed."""
AFTER_COMMIT: Final = "after-commit"
"""Replication: the transaction is committed, and the worker does not know."""
CHECKPOINT_WRITTEN: Final = "checkpoint-written"
"""Worker: the checkpoint is durable, the log not yet given back as far as it says."""

NAMES: Final = (
    BLOCK_PREPARED,
    RECORD_APPENDED,
    RECORD_SYNCED,
    BLOCK_APPLIED,
    BEFORE_COMMIT,
    AFTER_COMMIT,
    CHECKPOINT_WRITTEN,
)


class _Armed:
    """The one point at which this process ends."""

    def __init__(self, text: str) -> None:
        self.name, _, count = text.partition(":")
        if self.name not in NAMES or not (count or "1").isdecimal():
            raise ValueError(f"{VARIABLE}={text!r}: NAME[:COUNT] is allowed, with {NAMES}")
        self.left = int(count or 1)


_text = os.environ.get(VARIABLE)
_armed: Final = _Armed(_text) if _text else None


def reach(name: str) -> None:
    """End this process if `name` is the armed point, and reached often enough."""
    if _armed is not None and _armed.name == name:
        _armed.left -= 1
        if _armed.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
