"""Recording, killed at any instant: every shard is whole, and the run goes on in the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from srd.cache.inspection import verify
from tests.cache.conftest import EXACT, arguments

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_killed_at_twenty_random_instants(
    tmp_path: Path, recipe: Path, online: Any, open_run: Any
) -> None:
    asked = arguments(recipe, tmp_path, "", EXACT, "--set=train.save_every_steps=1")
    flags = [flag for flag in asked[1:] if not flag.startswith(("--name=", "--output="))]
    done = subprocess.run(
        [sys.executable, ROOT / "tests/cache/killed.py", "20", tmp_path / "cache", tmp_path, *flags],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [line for line in done.stdout.splitlines() if line.startswith("run")]
    assert names
    for number, name in enumerate(names):
        cache, run = tmp_path / f"cache{number}", open_run(tmp_path / name)
        assert run.rows() == online.rows()
        assert (run.path / "student.safetensors").read_bytes() == (
            online.path / "student.safetensors"
        ).read_bytes()
        assert "every row as it was written" in verify(cache)
        assert not list(cache.rglob("*.damaged"))
