"""`run.pixels: fast` in a torchdistill file: the released draws, refused where it would change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from resnet.inputs import load_item
from resnet.recipe import read_recipe
from tests.resnet.recipes import CE, CRITERION, LOADERS, OURS, OURS_LOSS, PAIR, TEST, Command

pytest.importorskip("simplejpeg")

DATA = """
dependencies: [resnet.extension]
datasets:
  digits/train: !import_call
    key: torchvision.datasets.ImageFolder
    init: {{kwargs: {{root: {train}, transform: !import_call {{
      key: torchvision.transforms.Compose, init: {{args: [[{first}
        !import_call {{key: torchvision.transforms.RandomHorizontalFlip}},
        !import_call {{key: torchvision.transforms.ToTensor}},
        !import_call {{key: torchvision.transforms.Normalize, init: {{args: [0.5, 0.2]}}}}]]}}}}}}}}
  digits/val: !import_call
    key: torchvision.datasets.ImageFolder
    init: {{kwargs: {{root: {val}, transform: !import_call {{
      key: torchvision.transforms.Compose, init: {{args: [[
        !import_call {{key: torchvision.transforms.Resize, init: {{kwargs: {{size: [32, 32]}}}}}},
        !import_call {{key: torchvision.transforms.ToTensor}}]]}}}}}}}}
"""
CROP = "!import_call {key: torchvision.transforms.RandomResizedCrop, init: {kwargs: {size: 32}}},"


@pytest.fixture
def text(make_jpegs: Callable[..., Path], tmp_path: Path, teacher_file: Path) -> Callable[..., str]:
    """A file with pictures of ten classes, on a pixel path."""
    photos = make_jpegs(tmp_path / "photos", {f"class_{n}": 2 for n in range(10)})

    def make(pixels: str, first: str = CROP, val: Path = photos) -> str:
        data = DATA.format(train=photos, val=val, first=first)
        models = PAIR.format(teacher=teacher_file, folder=tmp_path)
        train = LOADERS.replace("num_epochs: 2", "num_epochs: 1")
        test = TEST.replace("run: {", f"run: {{pixels: {pixels}, ")
        return data + models + "\ntrain:" + train + OURS + CRITERION + CE + OURS_LOSS + test

    return make


def items(text: str, folder: Path) -> list[Tensor]:
    """Every picture of two epochs, as it is trained on."""
    (folder / "file.yaml").write_text(text)
    dataset = read_recipe(folder / "file.yaml", output=str(folder)).config["datasets"][
        "digits/train"
    ]
    return [load_item(dataset, e, i, seed=0)[0] for e in range(2) for i in range(len(dataset))]


def test_the_pictures_differ_by_rounding(text: Callable[..., str], tmp_path: Path) -> None:
    released, fast = (items(text(pixels), tmp_path) for pixels in ("released", "fast"))
    for one, other in zip(released, fast, strict=True):
        assert other.shape == one.shape and other.dtype == torch.float32
        assert float((one - other).abs().mean()) < 6 / 255 / 0.2


@pytest.mark.slow
def test_a_run_is_trained_and_resumed_on_its_path_alone(
    text: Callable[..., str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(text("fast")) == 0
    capsys.readouterr()
    assert command(text("released")) == 2
    assert "run.pixels: fast -> released" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("", "begin with RandomResizedCrop"),
        ("!import_call {key: torchvision.transforms.Resize, init: {kwargs: {size: [32, 32]}}},",
         "begin with RandomResizedCrop"),
    ],
)  # fmt: skip
def test_other_transforms_are_refused(
    text: Callable[..., str], command: Command, capsys: pytest.CaptureFixture[str],
    first: str, words: str,
) -> None:  # fmt: skip
    assert command(text("fast", first)) == 2
    said = capsys.readouterr().err
    assert words in said and "digits/train" in said


def test_what_is_measured_stays_released(
    text: Callable[..., str], command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    same = text("fast").replace("dataset_id: digits/val", "dataset_id: digits/train")
    assert command(same) == 2
    assert "digits/train is measured on too" in capsys.readouterr().err
