"""Imports without the collector of garbage, and an end without freeing what the system frees."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch  # noqa: F401

from srd.libraries import importing

LEAVES = """
import atexit, sys, threading
from srd.libraries import leave

class Freed:
    def __del__(self):
        print("freed")

kept = Freed()
atexit.register(print, "last words")
if "thread" in sys.argv:
    threading.Thread(target=lambda: (threading.main_thread().join(), print("worked on"))).start()
print("done", end=", ")
leave(3)
"""


@pytest.mark.parametrize(
    ("others", "said"),
    [([], "done, last words\n"), (["thread"], "done, worked on\nlast words\nfreed\n")],
)
def test_a_process_leaves_when_all_is_said(others: list[str], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES, *others], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, said, "")


def test_the_collector_rests_while_libraries_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = gc.get_freeze_count()
    with importing():  # torch is there: a library is used by somebody's own program
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
