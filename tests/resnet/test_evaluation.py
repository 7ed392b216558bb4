"""-test_only: the files it finds, what is beside the student, and the published value."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from srd.data.digits import DigitImages
from tests.resnet.recipes import ALL, CE, CRITERION, DATA, FEW, LOADERS, TEST, Command

MODEL = "\nmodels: {model: {key: resnet18}}\ntrain:"
RECIPE = DATA.replace(FEW, ALL) + MODEL + LOADERS + CRITERION + CE + TEST


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("srd.files.released.PACKAGE", tmp_path)
    return tmp_path


def released(project: Path, name: str = "ilsvrc2012-resnet18_from_resnet34.pt") -> Path:
    """A ResNet-18 as torchdistill's SRD wrapper saves it, with its pickled arguments."""
    torch.manual_seed(0)
    weights: dict[str, Any] = {f"model.{k}": v for k, v in resnet18().state_dict().items()}
    weights |= {"linear.weight": torch.zeros(512, 512), "norm_layer.running_mean": torch.zeros(512)}
    path = project / "ckpts/resnet18" / name
    path.parent.mkdir(parents=True)
    arguments = argparse.Namespace(config="res3418.yaml", world_size=1)
    torch.save({"model": weights, "optimizer": {}, "best_value": 71.9, "args": arguments}, path)
    return path


class OfThousand(DigitImages):
    """The digits, as ten of ImageNet's number of classes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.classes = [str(number) for number in range(1000)]


def test_a_released_file_is_tested_where_the_table_says(
    project: Path,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released(project)
    assert command(RECIPE, "-test_only") == 2
    assert "knows 1000 classes, the data has 10" in capsys.readouterr().err
    monkeypatch.setattr("resnet.extension.DigitImages", OfThousand)
    assert command(RECIPE, "-test_only") == 0
    told = capsys.readouterr().err
    assert "ilsvrc2012-resnet18_from_resnet34.pt: 2 tensors beside it" in told
    assert "linear.weight, norm_layer.running_mean" in told and "on 500 images" in told
    assert "reported by torchdistill: 71.92; difference -" in told
    assert "not reproduced: these are 500 images" in told


def test_nothing_to_test(
    project: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(RECIPE, "-test_only") == 2
    told = capsys.readouterr().err
    assert "nothing to test" in told and "ckpts/resnet18" in told and told.count("\n") == 1


def test_a_file_that_does_not_fit(
    project: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    path = released(project)
    torch.save({"model": resnet18(num_classes=10).state_dict()}, path)
    assert command(RECIPE, "-test_only") == 2
    assert "fc.weight (10, 512) instead of (1000, 512)" in capsys.readouterr().err
