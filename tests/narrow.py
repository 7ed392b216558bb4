"""`tiny`, narrow and shallow: for tests of what happens around a student, not in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from deit import srd_deit


@contextmanager
def narrow(depth: int = 3) -> Iterator[None]:
    """Runs inside train that student under its name."""
    with (
        mock.patch.dict(srd_deit.SIZES, {"tiny": (24, 3)}),
        mock.patch.object(srd_deit, "DEPTH", depth),
    ):
        yield
