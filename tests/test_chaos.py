"""A run that is killed at random instants ends in the same bits: scripts/chaos.py, short and long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).resolve().parents[1]


def chaos(tmp_path: Path, kills: int, processes: list[str], *more: str) -> str:
    torch.manual_seed(0)
    teacher = timm.create_model("test_byobnet", num_classes=10)
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "chaos.py", f"--kills={kills}", "--processes",
         *processes, f"--output={tmp_path}", "--", "--teacher=test_byobnet",
         f"--teacher-checkpoint={tmp_path / 'teacher.pth'}", "--set=model.image_size=16", *more],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    told = chaos(tmp_path, 3, ["1"], "--epochs=12", "--workers=0")
    assert "3 kills" in told and "difference 0.0e+00" in told and "\nthe same run" in told


@pytest.mark.slow
def test_fifty_kills(tmp_path: Path) -> None:
    told = chaos(tmp_path, 50, ["1"])
    assert "50 kills" in told and "difference 0.0e+00" in told and "\nthe same run" in told
    assert " 0 of them in a save" not in told


@pytest.mark.slow
def test_kills_and_other_numbers_of_processes(tmp_path: Path) -> None:
    told = chaos(tmp_path, 10, ["1", "2"], "--epochs=100")
    assert "10 kills" in told and "\nthe same run" in told
