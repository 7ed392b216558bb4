"""A torchdistill teacher that computes in bfloat16, beside a student in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resnet import box as boxes
from resnet.models import load_models
from resnet.recipe import read_recipe
from resnet.train import prepare
from srd.device import Precision
from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, TEST, Command

CPU = torch.device("cpu")
PLAIN = "\nmodels:\n  model: {key: resnet18, kwargs: {num_classes: 10}}\n"


def said(file: Path, text: str) -> dict[str, Tensor]:
    """What the teacher of a configuration says of two images, by layer; and its logits."""
    file.write_text(text)
    recipe = read_recipe(file, output=str(file.parent))
    models = load_models(recipe, CPU)
    prepare(models, recipe, Precision(CPU))
    box: Any = boxes.make_box(recipe, models, CPU, 1)
    boxes.start_epoch(box, models, 0)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, layers = box.get_teacher_output(images, torch.zeros(2, dtype=torch.long), {})
    assert models.teacher is not None
    if "sequential" not in text:
        assert torch.equal(logits, models.teacher(images))  # as it is measured
    return {"logits": logits, **{path: seen["output"] for path, seen in layers.items()}}


@pytest.mark.parametrize(
    "part", ["", "sequential: [conv1, bn1, relu, layer1, layer2, layer3, layer4], "]
)
def test_it_says_nearly_the_same_in_the_students_type(
    tmp_path: Path, srd_yaml: str, part: str
) -> None:
    srd_yaml = srd_yaml.replace("  teacher: {", "  teacher: {" + part)
    exact = said(tmp_path / "a.yaml", srd_yaml)
    rounded = said(tmp_path / "b.yaml", srd_yaml.replace("run: {", "run: {teacher_bf16: true, "))
    assert len(exact) > 1 and list(exact) == list(rounded)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32 and not torch.equal(rounded[name], value)
        assert (rounded[name] - value).norm() < 0.05 * value.norm()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (("run: {", "run: {amp: fp64, "), "run.amp fp64"),
        (("run: {", "run: {amp: bf16, "), "leave one"),
        (("requires_grad: false", "requires_grad: true"), "this teacher is trained"),
        (None, "no effect without a teacher"),
    ],
)
def test_where_it_cannot_be_it_is_refused(
    tmp_path: Path,
    srd_yaml: str,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    other: tuple[str, str] | None,
    told: str,
) -> None:
    text = srd_yaml
    if other is None:
        forward = "\n  model: {forward_proc: forward_batch_only}\n"
        text = DATA + PLAIN + "\ntrain:" + LOADERS + forward + CRITERION + CE + TEST
    else:
        text = text.replace(*other)
    assert command(text.replace("run: {", "run: {teacher_bf16: true, ")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "runs" / "run").exists()
