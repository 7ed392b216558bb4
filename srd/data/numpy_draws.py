"""NumPy's global generator for other draws, without reading and writing its state, which takes 0.1 ms."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.random import mtrand

STATE_BYTES = 625 * 4  # MT19937: 624 words, and the place among them

# generators to draw from; one is in use for each level of nesting
_spare: list[np.random.MT19937] = []
# the state of the outer one when it was last seen to keep no normal number back
_nothing_waits = b""


@contextmanager
def other_numpy_draws() -> Iterator[None]:
    """Inside, `np.random` draws from a generator of its own, not seeded yet; outside, nothing moved.

    Exchanging generators drops the second normal number of a pair, which NumPy keeps back. So the state
    is read and written after all where one may wait: where the outer generator moved since it was looked
    at.
    """
    global _nothing_waits
    outer = mtrand.get_bit_generator()
    seen = _words(outer)
    whole = None
    if not seen or seen != _nothing_waits:
        state = np.random.get_state(legacy=False)
        if state["has_gauss"]:
            whole = state
        else:
            _nothing_waits = seen
    own = _spare.pop() if _spare else np.random.MT19937(0)
    mtrand.set_bit_generator(own)
    try:
        yield
    finally:
        mtrand.set_bit_generator(outer)
        if whole is not None:
            np.random.set_state(whole)
        _spare.append(own)


def _words(generator: np.random.BitGenerator) -> bytes:
    """What an MT19937 draws from next; b"" of another one."""
    if type(generator) is not np.random.MT19937:
        return b""
    return ctypes.string_at(generator.ctypes.state_address, STATE_BYTES)
