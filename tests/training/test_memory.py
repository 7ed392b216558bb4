"""Memory that a training will take, against what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from srd.device import Precision
from srd.errors import UserError
from srd.training import memory
from srd.training.memory import Needs, fit, measure

CPU = torch.device("cpu")
OFF = Precision(CPU)
NEEDS = Needs(held=8e6, passing=2e6, image=1e6, fixed=100e6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.drop = nn.Dropout()
        self.head = nn.Linear(10, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.norm(self.conv(images)).relu()).mean((2, 3)))


def test_what_a_network_holds_for_its_backward_pass() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = torch.get_rng_state()
    needs = measure(net, None, 8, OFF)
    assert torch.equal(torch.get_rng_state(), seen)  # nothing was drawn
    # of each of 64 positions: 3 inputs; 10 channels before the norm, rectified, and the mask
    assert needs.held / 64 / 4 == pytest.approx(3 + 3 * 10, abs=1)
    assert needs.passing == memory.TRANSIENT * 64 * 10 * 4
    assert needs.fixed == 3 * 4 * (30 + 20 + 11)
    assert needs.image == 2 * 3 * 64 * 4
    assert measure(net, None, 8, OFF, workers=2).image == 3 * needs.image
    assert measure(net, nn.Conv2d(3, 40, 1), 8, OFF).passing == 4 * needs.passing
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def fitted(free: float, **changes: Any) -> memory.Fit:
    given: dict[str, Any] = {
        "batch": 64, "evaluated": 10, "micro_batch": None, "batch_norms": False, "device": CPU,
    }  # fmt: skip
    return fit(NEEDS, free, **given | changes)


def test_a_batch_that_fits_is_taken_whole() -> None:
    whole = 100e6 + 64 * 11e6  # 804 MB, and a tenth is left to others
    told = fitted(whole / 0.9 + 1)
    assert told.micro_batch is None and told.line == "memory: about 804 MB needed, 893 MB are free"
    assert fitted(whole / 0.9 - 1e3).micro_batch == 32
    assert memory.fit(NEEDS, None, batch=64, evaluated=1, micro_batch=None, batch_norms=True,
                      device=CPU) == memory.Fit()  # fmt: skip


def test_else_micro_batches_or_the_batch_size_that_fits() -> None:
    assert fitted(400e6).micro_batch == 16  # 100 + 64 images + 16 graphs of 10: 324 of 360
    with pytest.raises(UserError, match=r"400 MB are free: --batch-size 16 fits"):
        fitted(400e6, batch_norms=True)
    with pytest.raises(UserError, match="--batch-size 32 fits"):
        fitted(400e6, batch_norms=True, processes=2)
    assert fitted(400e6, batch_norms=True, micro_batch=16).micro_batch is None
    with pytest.raises(UserError, match=r"train\.micro_batch=16 fits"):
        fitted(400e6, micro_batch=32)
    with pytest.raises(UserError, match=r"data\.eval_batch_size=64"):
        fitted(400e6, evaluated=100)
    with pytest.raises(UserError, match="even for two"):
        fitted(130e6, evaluated=1)
    with pytest.raises(UserError, match="smaller --batch-size"):
        fitted(180e6)
    assert "warning" in str(fitted(400e6, device=torch.device("cuda")).line)


GROUP = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 50"}


def test_control_groups_of_both_versions_and_those_above(tmp_path: Path) -> None:
    own = tmp_path / "own"
    old = {"memory.limit_in_bytes": "500", "memory.usage_in_bytes": "100"}
    old["memory.stat"] = "total_inactive_file 0"
    for folder, files in {
        "a/b": {**GROUP, "memory.max": "max"},
        "a": GROUP,
        "memory/c": old,
    }.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text + "\n")
    own.write_text("0::/a/b\n")
    assert list(memory._of_groups(tmp_path, own)) == [350]
    own.write_text("4:memory:/c\n3:cpu:/a\n")
    assert list(memory._of_groups(tmp_path, own)) == [400]
    assert list(memory._of_groups(tmp_path, tmp_path / "none")) == []
    free = memory.free_memory(CPU)
    assert free is None or 1e6 < free < 1e15


def command(recipe: Path, output: Path, model: str) -> list[str]:
    return ["--train-student", f"--config={recipe}", f"--output={output}", "--name=run",
            f"--model={model}", "--distillation=none", "--image-size=32"]  # fmt: skip


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_made(
    recipe: Path, tmp_path: Path, deit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 5e6)
    done = deit(*command(recipe, tmp_path, "test_byobnet"), "--set=data.eval_batch_size=2")
    assert done.code == 2 and "--batch-size" in done.err and "fits" in done.err
    assert not (tmp_path / "run").exists()


def test_micro_batches_are_chosen_told_and_kept(
    recipe: Path, tmp_path: Path, deit: Any, monkeypatch: pytest.MonkeyPatch, open_run: Any
) -> None:
    flags = [*command(recipe, tmp_path, "test_vit"), "--set=data.eval_batch_size=2"]
    needs: list[Needs] = []
    monkeypatch.setattr(
        memory, "measure", lambda *a, **k: needs.append(measure(*a, **k)) or needs[-1]
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: needs[-1].of(10, 4, 0) / 0.9 + 10)
    done = deit(*flags)
    assert done.code == 0, done.err
    assert "micro-batches of 4 images" in done.out + done.err
    last = tmp_path / "run" / "checkpoints" / "last.pth"
    assert torch.load(last, weights_only=True)["config"]["train"]["micro_batch"] == 4
    (tmp_path / "run" / "result.json").unlink()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e12)
    other = deit(*flags)
    assert other.code == 0 and "belongs to another recipe" not in other.err
