"""What the tests of `srd` share: small folders of images, and interpreters of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

torch.set_num_threads(1)

MakeImages = Callable[[Mapping[str, int]], Path]
RunPython = Callable[..., str]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """`{"train/cat": 3}` makes three JPEG files in <folder>/train/cat; returns the folder."""

    def make(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "images"
        draw = np.random.RandomState(0)
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = draw.randint(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / folder / f"{number}.jpg")
        return root

    return make


@pytest.fixture
def run_python() -> RunPython:
    """Runs a fresh interpreter on this checkout; returns what it printed."""

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
