"""Small inputs that many tests share: a teacher's file, image folders, the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deit.main import run
from srd.errors import exit_code

Command = Callable[..., int]
ROOT = Path(__file__).resolve().parent.parent

# DeiT-tiny on 24 digits, six steps in three epochs, mixup and cutmix on.
SMALL = [
    "--dataset=digits", "--device=cpu", "--workers=0", "--batch-size=12", "--epochs=3",
    "--teacher=regnety_002", "--set=data.images_per_class=2", "--set=model.image_size=32",
    "--set=train.log_every=1", "--set=train.evaluate_every=3", "--set=optim.warmup_epochs=1",
    "--set=data.eval_crop=1.0", "--set=train.batch_size=10",
]  # fmt: skip


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small RegNetY for ten classes with random weights."""
    torch.manual_seed(7)
    model = timm.create_model("regnety_002", num_classes=10)
    path = tmp_path_factory.mktemp("teacher") / "regnety_002.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.fixture
def small(tmp_path: Path, teacher_file: Path) -> list[str]:
    """Arguments of a seconds-long run into `tmp_path`."""
    return [*SMALL, f"--output={tmp_path}", f"--teacher-checkpoint={teacher_file}"]


@pytest.fixture
def command() -> Command:
    """The command line of the DeiT half, as a function from arguments to the exit code."""
    return lambda *arguments: exit_code(lambda: run([str(a) for a in arguments]))


def make_folder(root: Path, train: dict[str, int], val: dict[str, int], size: int = 40) -> Path:
    """JPEG files of noise in ImageNet's layout: so many per class."""
    draws = np.random.default_rng(0)
    for split, classes in (("train", train), ("val", val)):
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draws.integers(0, 256, (size, size + 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.JPEG")
    return root
