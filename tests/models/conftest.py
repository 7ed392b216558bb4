"""What tests of models share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import nn


@pytest.fixture
def on_the_hub(tmp_path: Path) -> Callable[[str, int], nn.Module]:
    """`on_the_hub("me/small", 5)` puts a small network where what was fetched is kept."""

    def put(repository: str, classes: int) -> nn.Module:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123")
        torch.manual_seed(0)
        model = timm.create_model("test_resnet", num_classes=classes).eval()
        safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors")
        images = {"input_size": [3, 32, 32], "mean": [0.1] * 3, "std": [0.5] * 3}
        config = {
            "architecture": "test_resnet",
            "num_classes": classes,
            "pretrained_cfg": {**images, "classifier": "fc"},
        }
        (snapshot / "config.json").write_text(json.dumps(config))
        return model

    return put
