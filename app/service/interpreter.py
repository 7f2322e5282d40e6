"""Settings of the interpreter for a process of many small objects and one waiting thread."""

import gc
import sys
from threading import Thread
from typing import Final

from app.chain import bulk

# Entries are trees without cycles and die by reference counting: there is little to collect.
_YOUNG_OBJECTS: Final = 100_000
_OLD_AFTER: Final = (50, 100)
# How long the writer, back from a sync, may wait for the loop to hand the interpreter over.
INTERVAL_S: Final = 0.0005
# Where many requests come at once: the server's threads wait as long for each of them.
_CROWDED_INTERVAL_S: Final = 0.00005


def prepare_for_large_blocks() -> None:
    """Load what hashes many commands at once, in the background: smaller blocks do not wait."""
    Thread(target=_load_bulk, name="bulk-hashing", daemon=True).start()


def _load_bulk() -> None:
    if bulk.load():
        gc.freeze()


def collect_rarely() -> None:
    """Look for garbage less often. Before large imports it also saves an eighth of their time."""
    gc.set_threshold(_YOUNG_OBJECTS, *_OLD_AFTER)


def tune_interpreter() -> None:
    """Set what there is now aside, collect rarely, and switch between threads sooner."""
    # Not collected before: some hundred objects are not worth 20 ms of the way to ready.
    gc.freeze()
    collect_rarely()
    sys.setswitchinterval(INTERVAL_S)


def switch_sooner(*, crowded: bool) -> None:
    """Let threads switch sooner while many requests come at once, and as usual again."""
    sys.setswitchinterval(_CROWDED_INTERVAL_S if crowded else INTERVAL_S)
