"""Damaged files by the thousand (`fuzz_files.py`): each is read or refused, nothing else happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz_files.py")


def fuzz(run_python: Callable[..., str], folder: Path, cases: int, seed: int) -> tuple[int, int]:
    read, refused, megabytes = map(int, run_python(FUZZ, folder, cases, seed).split())
    assert read + refused >= cases
    assert megabytes < 1500
    return read, refused


def test_hundreds_of_damaged_files(tmp_path: Path, run_python: Callable[..., str]) -> None:
    read, refused = fuzz(run_python, tmp_path, 400, 0)
    assert read > 20 and refused > 100, "a fuzzer that only breaks files beyond recognition"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_thousands_of_damaged_files(
    tmp_path: Path, run_python: Callable[..., str], seed: int
) -> None:
    fuzz(run_python, tmp_path, 2500, seed)
