"""Libraries stay until the process ends: they are imported quickly, and not taken apart at the end."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of torch and timm in a command: Python's collector finds no garbage in them.

    They leave 400,000 objects. Without this the collector goes through all of them seven times while
    they are made, which is a fifth of the time that the imports take, and again and again in a training.
    Where torch is there already, someone else's objects may be garbage: then nothing is done.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # triton complains of what was not freed when Python ends


def leave(code: int) -> NoReturn:
    """End the process with an exit code, and let the system free its memory.

    Python would free each object of each library, which after `import torch, timm` takes a third of
    the time that the imports took. What is registered with `atexit` is called, and streams are flushed, as
    in `multiprocessing`'s processes; where other threads are at work, or what was printed cannot be
    written, Python ends as always.
    """
    if threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)
    os._exit(code)
