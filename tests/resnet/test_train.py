"""Configurations run to the end: ours, torchdistill's SRD entries, and other methods."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from resnet import train as runner
from resnet.extension import Digits
from srd.files.checkpoint import load_file as load_state
from srd.run.log import read_metrics
from srd.training.averaging import RAW
from tests.resnet.recipes import (
    CE,
    CRITERION,
    DATA,
    LOADERS,
    PAIR,
    TEST,
    Command,
    plain_student,
)  # fmt: skip

PLAIN = "\nmodels:\n  model: {key: resnet18, kwargs: {num_classes: 10}}\n"
FORWARD = "\n  model: {forward_proc: forward_batch_only}\n"
FROZEN = """
  teacher: {{forward_proc: forward_batch_only, forward_hook: {{output: [{hooks}]}}, requires_grad: false}}
  student: {{forward_proc: forward_batch_only, forward_hook: {{output: [{hooks}]}}}}
"""
KD = """
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        kd:
          criterion:
            key: KDLoss
            kwargs:
              student_module_path: '.'
              student_module_io: output
              teacher_module_path: '.'
              teacher_module_io: output
              temperature: 4.0
              alpha: 0.5
              reduction: batchmean
          weight: 1.0
"""
AT = """
        at:
          criterion:
            key: ATLoss
            kwargs:
              mode: code
              at_pairs:
                pair1:
                  teacher: {path: layer3, io: output}
                  student: {path: layer3, io: output}
                  factor: 1
          weight: 100.0
"""
THEIR_SRD = """
  teacher:
    forward_proc: forward_batch_only
    forward_hook: {input: [], output: [model.layer4, norm_layer]}
    auxiliary_model_wrapper:
      key: SRDModelWrapper
      kwargs:
        input_module: {path: model.layer4, io: output}
        norm_kwargs: {num_features: 512, eps: 0.0001, affine: false}
    requires_grad: false
  student:
    forward_proc: forward_batch_only
    forward_hook: {input: [], output: [model.layer4, norm_layer]}
    auxiliary_model_wrapper:
      key: SRDModelWrapper
      kwargs:
        input_module: {path: model.layer4, io: output}
        linear_kwargs: {in_features: 512, out_features: 512}
        norm_kwargs: {num_features: 512, eps: 0.0001, affine: false}
"""
THEIR_SRD_LOSS = """
        srd:
          criterion:
            key: SRDLoss
            kwargs:
              student_feature_module_path: norm_layer
              student_feature_module_io: output
              teacher_feature_module_path: norm_layer
              teacher_feature_module_io: output
              student_linear_module_path: '.'
              student_linear_module_io: output
              teacher_linear_module_path: '.'
              teacher_linear_module_io: output
              exponent: 4.0
              temperature: 1.0
              reduction: batchmean
          weight: 1.0
"""


def recipe(models: str, train: str) -> str:
    return DATA + models + "\ntrain:" + LOADERS + train + TEST


@pytest.mark.parametrize(
    "method",
    ["plain", *(pytest.param(m, marks=pytest.mark.slow) for m in ("their_srd", "kd", "at"))],
)
def test_torchdistills_methods_run_to_the_end(
    method: str, tmp_path: Path, teacher_file: Path, command: Command
) -> None:
    pair = PAIR.format(teacher=teacher_file, folder=tmp_path)
    text = {
        "plain": recipe(PLAIN, FORWARD + CRITERION + CE),
        "kd": recipe(pair, FROZEN.format(hooks="") + KD),
        "at": recipe(pair, FROZEN.format(hooks="layer3") + CRITERION + CE + AT),
        "their_srd": recipe(pair, THEIR_SRD + CRITERION + CE + THEIR_SRD_LOSS),
    }[method]
    assert command(text, "--log", str(tmp_path / "logs/out.txt")) == 0
    assert "done in" in (tmp_path / "logs/out.txt").read_text()
    rows = read_metrics(tmp_path / "runs/run/metrics.jsonl", "step")
    assert [row["step"] for row in rows] == list(range(6))
    assert all(row["loss"] == row["loss"] for row in rows)
    plain_student().load_state_dict(load_file(tmp_path / "runs/run/student.safetensors"))


def test_ours_leaves_a_plain_student_with_the_accuracy_it_reports(
    tmp_path: Path,
    srd_yaml: str,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    teacher_file: Path,
) -> None:
    teachers, prepare = [], runner.prepare
    monkeypatch.setattr(
        runner, "prepare", lambda m, r, p: (teachers.append(m.teacher), prepare(m, r, p))
    )
    assert command(srd_yaml) == 0
    before, after = load_state(teacher_file)["model"], teachers[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the teacher moved"
    folder = tmp_path / "runs/run"
    state = load_state(folder / "checkpoints/last.pth")
    assert "distillation_loss.embed.weight" in state["extras"]["student"]
    moments = [moment["momentum_buffer"] for moment in state["optimizer"]["state"].values()]
    (of_projector,) = [moment for moment in moments if moment.shape == (512, 512)]
    assert (of_projector != 0).all(), "all of the projector learns"
    row = read_metrics(folder / "metrics.jsonl", "step")[-1]
    assert row["loss"] == pytest.approx(row["ce"] + 2 * row["repr"] + row["kl"], rel=1e-5)
    student = plain_student().eval()
    student.load_state_dict(load_file(folder / "student.safetensors"))
    from torchvision import transforms as T

    items = Digits("train", per_class=2, transform=T.Compose([T.Resize(32), T.ToTensor()]))
    images, targets = zip(*(items[i] for i in range(len(items))), strict=True)
    with torch.no_grad():
        found = student(torch.stack(images)).argmax(1).eq(torch.tensor(targets)).double().mean()
    result = json.loads((folder / "result.json").read_text())
    assert 100 * found.item() == pytest.approx(result["acc1"])
    assert result["images"] == 20
    plain_student().load_state_dict(load_state(tmp_path / "runs" / "student.pt")["model"])
    capsys.readouterr()
    assert command(srd_yaml, "-test_only", "-student_only", "-log_config", "--resume", "none") == 0
    told = [line for line in capsys.readouterr().err.split("\n") if line.startswith("warning")]
    assert told == [f"warning: {x} has no effect in a test" for x in ("--resume", "-log_config")]


def test_a_run_that_stops_and_goes_on_ends_in_the_same_weights(
    tmp_path: Path, srd_yaml: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(srd_yaml, "--name", "whole") == 0
    to_device, steps = runner.to_device, iter(range(100))

    def struck(*items: Any, **more: Any) -> Any:
        if next(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        return to_device(*items, **more)

    monkeypatch.setattr(runner, "to_device", struck)
    assert command(srd_yaml, "--name", "halves") == 143
    state = load_state(tmp_path / "runs/halves/checkpoints/last.pth")
    assert state["position"]["updates"] == 5
    assert command(srd_yaml, "--name", "halves") == 0
    whole, halves = (
        load_state(tmp_path / f"runs/{n}/checkpoints/last.pth") for n in ("whole", "halves")
    )
    for part in ("model", "extras", "optimizer"):
        assert_same(whole[part], halves[part])
    rows = [read_metrics(tmp_path / f"runs/{n}/metrics.jsonl") for n in ("whole", "halves")]
    assert [(r["kind"], r["step"], r.get("loss", r.get("singular_values"))) for r in rows[0]] == [
        (r["kind"], r["step"], r.get("loss", r.get("singular_values"))) for r in rows[1]
    ]


def assert_same(a: object, b: object) -> None:
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list) and isinstance(b, list):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "key: SimpleRecipeWrapper",
            "key: SimpleRecipeWraper",
            "did you mean 'SimpleRecipeWrapper'",
        ),
        ("key: resnet18,", "key: resnet81,", "did you mean 'resnet18'"),
        ("layer: layer4", "layer: layer44", "did you mean 'layer4'"),
        ("output: [model.layer4]", "output: [model.layr4]", "did you mean 'layer4'"),
        ("student_dim: 512", "student_dim: 256", "is 512 wide, the projector's student_dim 256"),
        ("dataset_id: digits/train", "dataset_id: digits/trian", "dataset_id"),
        ("key: SGD", "key: SDG", "did you mean 'SGD'"),
        ("num_epochs: 2", "num_epochs: 2\n  post_forward_process: x", "train.post_forward_process"),
        ("teacher_layer: layer4", "techer_layer: layer4", "techer_layer"),
    ],
)
def test_mistakes_are_one_line_and_exit_two(
    old: str,
    new: str,
    message: str,
    srd_yaml: str,
    command: Command,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert old in srd_yaml
    assert command(srd_yaml.replace(old, new)) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert message in error[0]


def test_a_teacher_of_another_shape_is_refused(
    srd_yaml: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    text = srd_yaml.replace(
        "key: resnet34, kwargs: {num_classes: 10}", "key: resnet34, kwargs: {num_classes: 7}"
    )
    assert command(text) == 2
    assert "fc.weight (10, 512) instead of (7, 512)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_changed_recipe_is_not_resumed(
    srd_yaml: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(srd_yaml) == 0
    assert command(srd_yaml.replace("num_epochs: 2", "num_epochs: 3")) == 2
    assert "train.num_epochs: 2 -> 3" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_extended_with_its_schedule_moved(
    tmp_path: Path, srd_yaml: str, command: Command
) -> None:
    """More epochs and a sharper fall: the rates are those of such a run from its start."""
    assert command(srd_yaml) == 0
    epochs = re.search(r"num_epochs: (\d+)", srd_yaml)
    assert epochs is not None
    more = int(epochs[1]) + 1
    changed = srd_yaml.replace(epochs[0], f"num_epochs: {more}")
    changed = re.sub(r"gamma: [\d.]+", "gamma: 0.5", changed)
    assert command(changed) == 2
    assert command(changed, "--extend") == 0
    assert command(changed, "--name", "whole") == 0
    folder = tmp_path / "runs/run"
    rows, whole = (
        read_metrics(tmp_path / f"runs/{name}/metrics.jsonl", "step") for name in ("run", "whole")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    assert rows[-1]["lr"] == whole[-1]["lr"]
    [record] = json.loads((folder / "result.json").read_text())["extended"]
    assert record["from_epoch"] == more - 1
    assert any("num_epochs" in change for change in record["changed"])
    assert "# extended in epoch" in (folder / "config.yaml").read_text()


@pytest.mark.slow
def test_a_moving_average_is_handed_on_and_survives_a_stop(
    tmp_path: Path, srd_yaml: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = srd_yaml.replace("run: {log_every: 1", "run: {log_every: 1, ema_decay: 0.9")
    assert command(text, "--name", "whole") == 0
    to_device, steps = runner.to_device, iter(range(100))

    def struck(*items: Any, **more: Any) -> Any:
        if next(steps) == 4:
            signal.raise_signal(signal.SIGTERM)
        return to_device(*items, **more)

    monkeypatch.setattr(runner, "to_device", struck)
    assert command(text, "--name", "halves") == 143
    assert command(text, "--name", "halves") == 0
    whole, halves = (
        load_state(tmp_path / f"runs/{n}/checkpoints/last.pth") for n in ("whole", "halves")
    )
    for part in ("model", RAW, "extras", "optimizer"):
        assert_same(whole[part], halves[part])
    assert not torch.equal(whole["model"]["fc.weight"], whole[RAW]["fc.weight"])
    best = load_state(tmp_path / "runs/whole/checkpoints/best.pth")["model"]
    assert_same(best, load_file(tmp_path / "runs/whole/student.safetensors"))
