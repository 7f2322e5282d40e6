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
_SWITCH_INTERVAL_S: Final = 0.0005


def prepare_for_large_blocks() -> None:
    """Load what hashes many commands at once, in the background: smaller blocks do not wait."""
    Thread(target=_load_bulk, name="bulk-hashing", daemon=True).start()


def _load_bulk() -> None:
    if bulk.load():
        gc.freeze()


def tune_interpreter() -> None:
    """Set what is alive now aside, collect rarely, and switch between threads sooner."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *_OLD_AFTER)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
