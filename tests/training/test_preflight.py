"""What is told before the first step."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srd.config.fields import Config
from srd.config.layers import Layer, nested
from srd.config.reading import read_config
from srd.data.inputs import Inputs, open_inputs
from srd.device import Precision
from srd.training.preflight import preflight

MODEL = nn.Linear(9_999, 1)  # 10,000 parameters
DIGITS = {"dataset": "digits", "images_per_class": 5, "workers": 0}
Usage = namedtuple("Usage", "total used free")


def lines(tmp_path: Path, **settings: Any) -> list[str]:
    given = {"output": str(tmp_path / "not" / "yet"), "data.images_per_class": 5} | {
        key.replace("__", "."): value for key, value in settings.items()
    }
    layers = [Layer("", nested(key, value)) for key, value in given.items()]
    base = {"data": DIGITS, "model": {"image_size": 16}, "train": {"batch_size": 12}}
    config = read_config([Layer("", base), *layers])
    precision = Precision.choose("off", torch.device("cpu"))
    return list(
        preflight(
            config.train, config.optim, config.output, inputs=inputs_of(config), name="toy",
            model=MODEL, teacher=None, precision=precision,
        )
    )  # fmt: skip


def inputs_of(config: Config) -> Inputs:
    sizes = {"image_size": 16, "batch_size": config.train.batch_size}
    return open_inputs(
        config.data, config.augment, **sizes, seed=0, training=True, pin_memory=False
    )


def test_updates_rate_and_disk(tmp_path: Path) -> None:
    first, updates, disk = lines(tmp_path, optim__lr=0.512, train__epochs=100)
    assert first.startswith("toy, 0.01 M parameters, 10 classes; 50 training and 500 validation")
    assert updates == (
        "100 epochs of 4 updates of 12 images (2 images left out of each); learning rate 0.012 "
        "(0.512 for 512 images), warm-up 20 epochs"
    )
    # two checkpoints and the best, of weights and two moments, and the student: 10 times 40 kB
    assert disk.startswith(f"disk: up to 0 MB in {tmp_path}/not/yet, ")


@pytest.mark.parametrize(
    ("epochs", "usual"),
    [(41, None), (40, None), (39, "2.6"), (30, "2")],
)
def test_a_warm_up_that_is_long_for_the_run(tmp_path: Path, epochs: int, usual: str | None) -> None:
    warnings = [line for line in lines(tmp_path, train__epochs=epochs) if "warning" in line]
    assert len(warnings) == (usual is not None)
    if usual:
        assert "more than half" in warnings[0] and f"--warmup-epochs {usual} is" in warnings[0]


def test_a_disk_that_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, warned in ((400_000, False), (399_999, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda place, free=free: Usage(0, 0, free))
        assert ("warning: the disk will not do" in lines(tmp_path)[-1]) == warned
