"""Seconds of the processor of docs/security.md, whose Python counts to forty million in one.

A test that measures its own machine beside the work does not fail where that one is slow or busy.
"""

from __future__ import annotations

import time


def second() -> float:
    """This processor's seconds for one of that one's, the longer of two tries."""
    return max(_count(), _count())


def _count(times: int = 8) -> float:
    started = time.process_time()
    for _ in range(40_000_000 // times):
        pass
    return times * (time.process_time() - started)
