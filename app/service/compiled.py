"""Loading modules of compiled functions, in the background.

Until they are there, and where they can't be had, all goes on without them. They need numba, and
memory that may hold code, which a hardened system may refuse. numba keeps what it has compiled for
the next time, and looks whether its module has changed since, but not whether another has, of which
it took in functions or constants: so all are kept under one digest of all.
"""

import gc
import logging
import os
from collections.abc import Callable
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Final

_log = logging.getLogger(__name__)

LANES: Final = "app.chain.lanes"
GATHERING: Final = "app.chain.gathering"
VALUES: Final = "app.model.values"
RECOGNITION: Final = "app.model.recognition"
TRANSCRIPTION: Final = "app.model.transcription"
GRAMMAR: Final = "app.model.grammar"
"""No compiled functions of its own: what uses two of the others."""
_APP: Final = Path(__file__).parents[1]
COMPILED: Final = (VALUES, RECOGNITION, TRANSCRIPTION, LANES, GATHERING)


def load_in_background(use: Callable[..., None], *modules: str) -> None:
    """Load modules on a thread, and hand them over if they can be had."""

    def load_and_use() -> None:
        loaded = [load(module) for module in modules]
        if None in loaded:
            return
        try:
            use(*loaded)
        except OSError as error:
            _without(error)
            return
        gc.freeze()
        _log.info("compiled functions are in use: %s", ", ".join(modules))

    Thread(target=load_and_use, name=f"loading {modules[0]}", daemon=True).start()


def load(module: str) -> Any:
    """The module; None where it can't be had.

    Takes half a second, and several where nothing compiled is kept from an earlier time.
    """
    try:
        numba = import_module("numba")
        numba.config.CACHE_DIR = _kept_in(numba.config.CACHE_DIR)
        return import_module(module)
    except ImportError:
        return None
    except (OSError, RuntimeError) as error:
        _without(error)
        return None


def _without(error: Exception) -> None:
    _log.info("going on without compiled functions: %s", error)


def _kept_in(parent: str) -> str:
    """Where compiled functions are kept: below `parent`, the code itself, or the user's caches."""
    digest = blake2b(digest_size=8)
    for module in COMPILED:
        digest.update(_source(module).read_bytes())
    name = f"compiled-{digest.hexdigest()}"
    if parent:
        directory = Path(parent)
    elif os.access(_APP, os.W_OK):
        directory = _APP / "__pycache__"
    else:
        directory = Path.home() / ".cache" / "journal"
    return str(directory if directory.name == name else directory / name)


def _source(module: str) -> Path:
    return _APP.parent.joinpath(*module.split(".")).with_suffix(".py")


if __name__ == "__main__":
    for _module in COMPILED:  # so that no start has to compile them
        load(_module)
