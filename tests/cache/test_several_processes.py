"""A cache that any number of processes recorded is replayed by any other: real torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from srd.files.checkpoint import load_weights
from srd.run.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BOUND = 1e-9  # in double precision
TERMS = ("loss", "ce", "kl", "repr")
EXACT = "--set=cache.dtype=float32"
RECIPE: dict[str, Any] = {
    "model": {"name": "tiny", "image_size": 16},
    "data": {"dataset": "digits", "images_per_class": 8, "workers": 0},
    "teacher": {"name": "test_byobnet", "evaluate": False},
    "augment": {"rand_augment": "", "mixup": 0.8, "cutmix": 1.0},
    "optim": {"lr": 0.01, "warmup_epochs": 1},
    "train": {"batch_size": 16, "epochs": 2, "evaluate_every": 0, "log_every": 1},
    "device": "cpu",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a random teacher, and a recipe."""
    torch.manual_seed(0)
    teacher = timm.create_model("test_byobnet", num_classes=10)
    torch.save({"model": teacher.state_dict()}, tmp_path / "teacher.pth")
    recipe = {
        **RECIPE,
        "teacher": RECIPE["teacher"] | {"checkpoint": str(tmp_path / "teacher.pth")},
    }
    (tmp_path / "deit.yaml").write_text(json.dumps(recipe))
    return tmp_path


def torchrun(folder: Path, processes: int, *asked: tuple[str, list[str]]) -> str:
    words = [word for name, flags in asked for word in (name, json.dumps(["--amp=fp64", *flags]))]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", ROOT / "tests" / "cache" / "several.py", folder, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def assert_same(folder: Path, name: str, other: str) -> None:
    ours, theirs = (read_metrics(folder / n / "metrics.jsonl", "step") for n in (name, other))
    assert len(ours) == len(theirs) == 10
    for mine, its in zip(ours, theirs, strict=True):
        for term in TERMS:
            assert mine[term] == pytest.approx(its[term], rel=BOUND), term
    weights = [load_weights(folder / n / "student.safetensors") for n in (name, other)]
    for key, value in weights[0].items():
        assert torch.allclose(value.double(), weights[1][key].double(), rtol=1e-6, atol=1e-8), key


@pytest.mark.slow
def test_recorded_by_one_process_and_replayed_by_two(folder: Path) -> None:
    cache = [f"--teacher-cache={folder / 'cache'}", EXACT]
    torchrun(folder, 1, ("online", []), ("recorded", cache))
    (folder / "teacher.pth").unlink()
    told = torchrun(folder, 2, ("replayed", cache))
    assert "10 of 10 steps are there" in told
    assert_same(folder, "recorded", "online")
    assert_same(folder, "replayed", "online")


@pytest.mark.slow
@pytest.mark.parametrize(("recording", "replaying"), [(2, 1), (2, 4), (4, 1), (4, 2), (1, 4)])
def test_any_count_replays_any_other(folder: Path, recording: int, replaying: int) -> None:
    cache = [f"--teacher-cache={folder / 'cache'}", EXACT]
    torchrun(folder, 1, ("online", []))
    torchrun(folder, recording, ("recorded", cache))
    names = {path.stem.rpartition("_")[2] for path in (folder / "cache").rglob("*.safetensors")}
    assert names == {f"{rank}of{recording}" for rank in range(recording)}
    (folder / "teacher.pth").unlink()
    torchrun(folder, replaying, ("replayed", cache))
    assert_same(folder, "recorded", "online")
    assert_same(folder, "replayed", "online")


@pytest.mark.slow
def test_processes_share_out_the_filling_and_one_lacks_a_share(folder: Path) -> None:
    """And a cache of which one process's shard is damaged: all go on, that one computes."""
    cache = [f"--teacher-cache={folder / 'cache'}", EXACT]
    torchrun(folder, 1, ("online", []))
    assert "all there" in torchrun(folder, 2, ("fill", cache))
    (folder / "cache" / "epoch_0001").rename(folder / "gone")
    torchrun(folder, 2, ("first", cache))
    assert_same(folder, "first", "online")
    damaged = next((folder / "cache" / "epoch_0001").glob("*_rows_1of2.safetensors"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    torchrun(folder, 2, ("second", cache))
    assert_same(folder, "second", "online")
    assert "10 of 10 steps are there" in torchrun(folder, 4, ("third", cache))
    assert_same(folder, "third", "online")
