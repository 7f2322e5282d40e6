"""Settings of the interpreter for a process of many small objects and one waiting thread."""

import ctypes
import gc
import sys
from contextlib import suppress
from typing import Final

# Entries are trees without cycles and die by reference counting: there is little to collect.
_YOUNG_OBJECTS: Final = 100_000
_OLD_AFTER: Final = (50, 100)
# How long the writer, back from a sync, may wait for the loop to hand the interpreter over.
INTERVAL_S: Final = 0.0005
# Where many requests come at once: the server's threads wait as long for each of them.
_CROWDED_INTERVAL_S: Final = 0.00005
# mallopt(3). Once such an allocation was given back, the C library would by itself put the next
# ones of its size into the heap, where a body that grows is copied: both copies count until then.
# Records of the usual size stay there. How much the heap keeps for later is set with it: by
# itself it is little, then.
_M_MMAP_THRESHOLD: Final = -3
_M_TRIM_THRESHOLD: Final = -1
_LARGE_BYTES: Final = 9 << 20
_KEPT_BYTES: Final = _LARGE_BYTES


def collect_rarely() -> None:
    """Look for garbage less often. Before large imports it also saves an eighth of their time."""
    gc.set_threshold(_YOUNG_OBJECTS, *_OLD_AFTER)


def tune_interpreter() -> None:
    """Set what there is now aside, collect rarely, and switch between threads sooner."""
    # Not collected before: some hundred objects are not worth 20 ms of the way to ready.
    gc.freeze()
    collect_rarely()
    sys.setswitchinterval(INTERVAL_S)
    _keep_large_out_of_the_heap()


def _keep_large_out_of_the_heap() -> None:
    with suppress(AttributeError):  # a C library without it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def give_free_memory_back() -> None:
    """To the system: what the C library keeps of it where others can't use it.

    It takes a few milliseconds, in which other threads go on.
    """
    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)


def switch_sooner(*, crowded: bool) -> None:
    """Let threads switch sooner while many requests come at once, and as usual again."""
    sys.setswitchinterval(_CROWDED_INTERVAL_S if crowded else INTERVAL_S)
