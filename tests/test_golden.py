"""Short loss curves against tests/golden/loss_curves.json.

A refactor leaves the file untouched. A change of numerics rewrites it with
`python tests/test_golden.py --write`, and says so in docs/fidelity.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
from torch import nn

from deit.main import run
from srd.errors import Stopped
from srd.run.log import read_metrics
from srd.training import build
from srd.training import train as training
from srd.training.loop import Loop

GOLDEN = Path(__file__).parent / "golden" / "loss_curves.json"
CASES = {
    "srd_correlation": [],
    "srd_elementwise": ["--set=distill.match=elementwise"],
    "kd": ["--distillation=kd"],
    "none": ["--distillation=none"],
}
EPOCHS, MEASURED = 61, 3  # the warm-up takes half the run: its beginning is measured
torch.set_num_threads(1)  # the order of sums, and two cores that others use, too

TERMS = ("loss", "ce", "kl", "repr", "grad_norm", "lr")


def refilled(model: nn.Module) -> Any:
    """`model` with matrices drawn by name: the libraries' own initialisations change."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                bare = name.replace("student.model.", "student.")
                draws = torch.Generator().manual_seed(zlib.crc32(bare.encode()))
                p.copy_(torch.randn(p.shape, generator=draws) / p[0].numel() ** 0.5)
    return model


def curve(case: str, folder: Path) -> list[dict[str, float]]:
    """Six steps of DeiT-tiny on the digits, taught by a random small RegNetY."""
    teacher = refilled(timm.create_model("regnety_002", num_classes=10))
    torch.save({"model": teacher.state_dict()}, folder / "teacher.pth")
    arguments = [
        "--train_student",
        "--config=configs/digits/deit.yaml",
        f"--output={folder}",
        f"--name={case}",
        f"--teacher-checkpoint={folder / 'teacher.pth'}",
        "--device=cpu",
        "--batch-size=20",
        "--set=optim.warmup_epochs=30",
        "--set=optim.lr=0.008",
        f"--epochs={EPOCHS}",
        "--set=data.images_per_class=4",
        "--set=train.evaluate_every=0",
        # Mixup only, on whole images enlarged without interpolation: cutmix differs between versions
        # of timm, and interpolation between versions of Pillow.
        "--set=augment.mixup=0.8",
        "--set=augment.crop_scale=[1, 1]",
        "--set=augment.crop_ratio=[1, 1]",
        "--set=augment.interpolation=nearest",
    ]
    task, make_loop = build.DistillationTask, training.make_loop

    def make(*arguments: Any, **named: Any) -> Any:
        return refilled(task(*arguments, **named))

    def make_short(*arguments: Any, **named: Any) -> Loop:
        loop = make_loop(*arguments, **named)

        def end_epoch(accuracy: Any) -> None:
            if loop.position.epoch + 1 == MEASURED:
                raise Stopped("measured enough")

        loop.end_epoch = end_epoch
        return loop

    with (
        mock.patch.object(build, "DistillationTask", make),
        mock.patch.object(training, "make_loop", make_short),
        pytest.raises(Stopped),
    ):
        run([*arguments, *CASES[case]])
    rows = read_metrics(folder / case / "metrics.jsonl", "step")
    return [{name: row[name] for name in TERMS if name in row} for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_loss_curve_is_the_golden_one(case: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[case]
    found = curve(case, tmp_path)
    assert len(found) == len(golden) == 6
    for step, (row, expected) in enumerate(zip(found, golden, strict=True)):
        for name, value in expected.items():
            tolerance = 2e-3 if name == "grad_norm" else 2e-4
            assert row[name] == pytest.approx(value, rel=tolerance, abs=1e-5), (step, name)


def test_the_golden_file_has_every_case() -> None:
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    with tempfile.TemporaryDirectory() as name:
        curves = {case: curve(case, Path(name)) for case in CASES}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(curves, indent=1) + "\n")
