"""Released checkpoints, evaluated without yacs, against a forward pass that shares nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from yacs.config import CfgNode

from scripts import evaluate_released
from srd.evaluation.accuracy import Accuracy
from srd.evaluation.published import compare, reproduces
from srd.files.released import RELEASED, Released, in_ckpts, released_as
from tests.deit.test_student import WIDTHS, reference, released_weights

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 3
# The command line in a Python where yacs cannot be imported.
WITHOUT_YACS = """
import sys
sys.modules.update({name: None for name in ("yacs", "yacs.config")})
from deit.main import main
main()
"""


def released_file(path: Path, model: str, classes: int = CLASSES) -> dict[str, torch.Tensor]:
    """Write what the paper's code saves, with random weights; returns the student's."""
    weights = released_weights(model, classes, 224)
    projector = {"embed.weight": torch.randn(30, 192), "bn_s.running_mean": torch.zeros(30)}
    config = CfgNode({"DATA": {"IMG_SIZE": 224}, "MODEL": {"NAME": model}})
    extras = {f"distillation_loss.{name}": value for name, value in projector.items()}
    content = {"model": {f"module.{k}": v for k, v in {**weights, **extras}.items()},
               "optimizer": {"state": {}}, "lr_scheduler": {}, "max_accuracy": 77.2, "epoch": 299,
               "config": config}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return weights


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_jpegs: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return make_jpegs(folder, {f"val/{name}": 2 for name in "abc"}, size=(180, 240))


def by_hand(folder: Path, weights: dict[str, torch.Tensor], model: str, filter: int) -> Accuracy:
    """Accuracy and loss with Pillow, NumPy and the reference alone."""
    inputs, targets = [], []
    for number, name in enumerate("abc"):
        for file in sorted((folder / "val" / name).iterdir()):
            image = Image.open(file).convert("RGB")
            short = min(image.size)
            size = tuple(int(256 * side / short) for side in image.size)
            image = image.resize(size, filter)
            left, top = (round((side - 224) / 2) for side in size)
            pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
            pixels = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
            inputs.append(torch.tensor(pixels, dtype=torch.float64).permute(2, 0, 1))
            targets.append(number)
    double = {name: value.double() for name, value in weights.items()}
    with torch.no_grad():
        head, conv_head, _ = reference(double, torch.stack(inputs), WIDTHS[model][1])
    logits, truth = (head + conv_head) / 2, torch.tensor(targets)
    acc1 = 100 * (logits.argmax(dim=1) == truth).float().mean().item()
    return Accuracy(acc1, 100.0, F.cross_entropy(logits, truth).item(), len(truth), 0.0)


@pytest.mark.parametrize(
    "model, interpolation",
    [("tiny", "bilinear"), pytest.param("small", "bicubic", marks=pytest.mark.slow)],
)
def test_a_released_checkpoint_evaluates_as_an_independent_forward_pass_says(
    tmp_path: Path, images: Path, model: str, interpolation: str
) -> None:
    weights = released_file(tmp_path / f"ckpts/deit_{model}/ckpt_epoch_299.pth", model)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_YACS, "--model", model, "--data-path", str(images),
         "--set", f"data.eval_interpolation={interpolation}", "--workers=0", "--device=cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = by_hand(images, weights, model, filters[interpolation])
    found = re.search(r"acc1 ([\d.]+)  acc5 [\d.]+  loss ([\d.]+)  on 6 images", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) == pytest.approx(expected.acc1, abs=0.01)
    assert float(found[2]) == pytest.approx(expected.loss, abs=2e-4)
    assert "distillation_loss.embed.weight" in done.stderr  # what is beside the student is listed


def measured(acc1: float, images: int = 50_000) -> Accuracy:
    return Accuracy(acc1, 93.8, 1.0, images, 100.0)


def tiny() -> Released:
    found = released_as("deit_tiny")
    assert found is not None
    return found


@pytest.mark.parametrize(
    "acc1, close", [(77.2, True), (77.3, True), (77.1, True), (77.302, False), (76.9, False)]
)
def test_reproduced_is_within_a_tenth_of_a_point(acc1: float, close: bool) -> None:
    told = compare(measured(acc1), tiny(), "data.eval_crop 0.875")
    assert reproduces(measured(acc1), tiny()) is close
    assert f"77.20 / 93.70; difference {acc1 - 77.2:+.2f} / +0.10" in told
    assert ("not reproduced" in told) is not close
    assert ("check interpolation and crop (here data.eval_crop 0.875)" in told) is not close


def test_other_images_reproduce_nothing() -> None:
    told = compare(measured(77.2, images=12), tiny(), "")
    assert "not reproduced: these are 12 images, not the 50000" in told


def test_a_value_without_top_5_is_shown_without() -> None:
    teacher = released_as("regnety_160")
    assert teacher is not None and teacher.acc5 is None
    assert "82.90; difference -0.90: not" in compare(measured(82.0), teacher, "")


def test_files_are_known_by_their_names() -> None:
    paper, theirs = released_as("resnet18_paper"), released_as("resnet18")
    assert paper is not None and theirs is not None and paper.acc1 == 71.87
    assert released_as("resnet18_paper", Path("x") / Path(theirs.file).name) is theirs
    assert released_as("resnet18_paper", Path("student.safetensors")) is paper
    assert released_as("resnet50") is None
    assert {one.name for one in RELEASED} == set(evaluate_released.ORDER)


@pytest.fixture
def three_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty project folder, for weights of three classes."""
    monkeypatch.setattr(evaluate_released, "CLASSES", CLASSES)
    monkeypatch.setattr("srd.files.released.PACKAGE", tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_whole_table(
    three_classes: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = released_file(three_classes / "ckpts/deit_tiny/ckpt_epoch_299.pth", "tiny")
    evaluate_released.run(["--data-path", str(images), "--device=cpu", "--workers=0"])
    results = json.loads((three_classes / "results/released.json").read_text())
    rows: dict[str, Any] = {row["name"]: row for row in results["weights"]}
    expected = by_hand(images, weights, "tiny", Image.Resampling.BILINEAR)
    found = rows["deit_tiny"]
    assert found["measured"]["loss"] == pytest.approx(expected.loss, abs=1e-4)
    assert found["measured"]["acc1"] == pytest.approx(expected.acc1)
    assert found["outcome"] == "not reproduced" and len(found["sha256"]) == 64
    assert found["not_needed"] == [
        "distillation_loss.embed.weight",
        "distillation_loss.bn_s.running_mean",
    ]
    others = [row for name, row in rows.items() if name != "deit_tiny"]
    assert len(others) == 5 and all(row["outcome"] == "not here" for row in others)
    assert "measured" not in rows["deit_small"] and results["versions"]["torch"]
    table = (three_classes / "results/released.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("not run here") == 5 and "| 77.20 / 93.70 | the paper |" in table


@pytest.mark.slow
def test_files_that_do_not_fit_and_data_that_is_not_there(
    three_classes: Path, images: Path
) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts/evaluate_released.py"),
        "--device=cpu",
        "--workers=0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for data, word in ((three_classes / "nowhere", "nowhere"), (images, "3 classes")):
        done = subprocess.run(
            [*command, f"--data-path={data}"],
            env=environment, cwd=three_classes, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert not (three_classes / "results").exists()


def test_released_files_are_found_here_or_in_the_repository(three_classes: Path) -> None:
    assert in_ckpts("a.pth", "b.pth") is None
    (three_classes / "ckpts").mkdir()
    (three_classes / "ckpts/b.pth").touch()
    assert in_ckpts("a.pth", "b.pth") == Path("ckpts/b.pth")
