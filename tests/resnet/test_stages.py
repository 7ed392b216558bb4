"""Methods of several stages, and those that need more of their data: run here, and resumed to the bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet import train as runner
from srd.files.checkpoint import load_file
from srd.run.log import read_metrics
from tests.resnet.recipes import CE, CRITERION, DATA, LOADERS, TEST, Command

PAIR = """
models:
  teacher_model: {key: resnet32, kwargs: {num_classes: 10}}
  student_model: {key: resnet20, kwargs: {num_classes: 10}}
"""
PLAIN = """
    teacher: {forward_proc: forward_batch_only, requires_grad: false}
    student: {forward_proc: forward_batch_only, requires_grad: true}
"""
HINT = """
    teacher:
      forward_proc: forward_batch_only
      sequential: [conv1, bn1, relu, layer1]
      forward_hook: {input: [], output: [layer1]}
      requires_grad: false
    student:
      forward_proc: forward_batch_only
      adaptations:
        convreg:
          key: ConvReg
          kwargs: {num_input_channels: 16, num_output_channels: 16, kernel_size: 1, stride: 1,
                   padding: 0, uses_relu: true}
      sequential: [conv1, bn1, relu, layer1, '+convreg']
      frozen_modules: []
      forward_hook: {input: [], output: ['+convreg']}
      requires_grad: true
"""
HINT_LOSS = """
        hint:
          criterion: {key: MSELoss, kwargs: {reduction: mean}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: false, module_path: '+convreg', io: output}
              target: {is_from_teacher: true, module_path: layer1, io: output}
          weight: 1.0
"""
FACTOR_FIRST = """
    teacher:
      forward_proc: forward_batch_only
      sequential: []
      auxiliary_model_wrapper:
        key: Teacher4FactorTransfer
        kwargs:
          minimal: {{sequential: [conv1, bn1, relu, layer1, layer2, layer3]}}
          input_module_path: teacher_model.layer3
          paraphraser_kwargs: &paraphraser
            {{k: 0.5, num_input_channels: 64, kernel_size: 3, stride: 1, padding: 1, uses_bn: false}}
          paraphraser_ckpt: {folder}/runs/paraphraser.pt
          uses_decoder: true
      forward_hook: {{input: [], output: [teacher_model.layer3, paraphraser]}}
      requires_grad: true
      frozen_modules: [teacher_model]
    student:
      forward_proc: forward_batch_only
      auxiliary_model_wrapper: {{key: EmptyModule, kwargs: }}
      forward_hook: {{input: [], output: []}}
      requires_grad: false
"""
FACTOR_FIRST_LOSS = """
        reconst:
          criterion: {key: MSELoss, kwargs: {reduction: mean}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {is_from_teacher: true, module_path: paraphraser, io: output}
              target: {is_from_teacher: true, module_path: teacher_model.layer3, io: output}
          weight: 0.000001  # a random teacher's features are large
"""
FACTOR_SECOND = """
    teacher:
      forward_proc: forward_batch_only
      auxiliary_model_wrapper:
        key: Teacher4FactorTransfer
        kwargs:
          minimal:
          input_module_path: teacher_model.layer3
          paraphraser_kwargs: *paraphraser
          paraphraser_ckpt: {folder}/runs/paraphraser.pt
          uses_decoder: false
      forward_hook: {{input: [], output: [teacher_model.layer3, paraphraser]}}
      requires_grad: false
    student:
      forward_proc: forward_batch_only
      auxiliary_model_wrapper:
        key: Student4FactorTransfer
        kwargs:
          input_module_path: student_model.layer3
          translator_kwargs:
            {{num_input_channels: 64, num_output_channels: 32, kernel_size: 3, stride: 1, padding: 1,
             uses_bn: false}}
      forward_hook: {{input: [], output: [student_model.layer3, translator]}}
      requires_grad: true
"""
FACTOR_SECOND_LOSS = """
        factor:
          criterion:
            key: FTLoss
            kwargs: {p: 1, reduction: mean, paraphraser_path: paraphraser, translator_path: translator}
          weight: 10.0
"""
OPTIMIZER = "\n    optimizer: {key: SGD, kwargs: {lr: 0.01, momentum: 0.9}}\n"


def indented(text: str, by: int = 2) -> str:
    return "\n".join(" " * by + line if line else line for line in text.split("\n"))


def staged(first: tuple[str, str], second: tuple[str, str]) -> str:
    """Two epochs of a stage with all, and two of one that takes the data over."""
    loss = indented(CRITERION)
    one = "\n  stage1:" + indented(LOADERS) + first[0] + loss + indented(first[1])
    two = "\n  stage2:\n    num_epochs: 2" + OPTIMIZER + second[0] + loss + indented(second[1])
    return DATA + PAIR + "\ntrain:" + one + two + TEST


@pytest.fixture
def hints() -> str:
    """FitNets: a hint of the first layers with a regressor, then targets."""
    return staged((HINT, HINT_LOSS), (PLAIN, CE))


@pytest.fixture
def factors(tmp_path: Path) -> str:
    """Factor transfer: a paraphraser of the teacher's features, then the student learns it."""
    first, second = (text.format(folder=tmp_path) for text in (FACTOR_FIRST, FACTOR_SECOND))
    losses = FACTOR_FIRST_LOSS, CE + FACTOR_SECOND_LOSS
    return staged((first, losses[0]), (second, losses[1]))


def steps(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl", "step")
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "time")} for row in rows
    ]


def stop_in(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Ask the next run to stop after that step."""
    losses = runner.BoxTask.losses
    made = {"steps": 0}

    def struck(self: Any, batch: Any, seed: int) -> Any:
        made["steps"] += len(batch[0]) == 10  # not the rehearsals'
        if made["steps"] == 3 * epoch + step:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses(self, batch, seed)

    monkeypatch.setattr(runner.BoxTask, "losses", struck)


def test_stages_follow_one_another_in_one_run(command: Command, hints: str, tmp_path: Path) -> None:
    assert command(hints) == 0
    rows = steps(tmp_path / "runs/run")
    assert [(row["epoch"], row["step"]) for row in rows] == [(s // 3, s) for s in range(12)]
    assert all(("hint" in row) == (row["epoch"] < 2) for row in rows)
    assert all(("ce" in row) == (row["epoch"] >= 2) for row in rows)
    assert [row["lr"] for row in rows[::3]] == pytest.approx([0.02, 0.002, 0.01, 0.01])
    last = read_metrics(tmp_path / "runs/run/metrics.jsonl", "eval")[2:]
    result = json.loads((tmp_path / "runs/run/result.json").read_text())
    assert result["epochs"] == 4 and result["updates"] == 12
    assert result["best_acc1"] == max(row["acc1"] for row in last)  # of the last stage
    evaluations = read_metrics(tmp_path / "runs/run/metrics.jsonl", "eval")
    assert [row["epoch"] for row in evaluations] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("method", "epoch", "step"),
    [
        pytest.param("factors", 1, 2, marks=pytest.mark.slow),
        ("hints", 1, 3),
        pytest.param("hints", 3, 1, marks=pytest.mark.slow),
        pytest.param("factors", 1, 3, marks=pytest.mark.slow),
        pytest.param("factors", 3, 1, marks=pytest.mark.slow),
    ],
)
def test_a_run_in_stages_goes_on_to_the_bit(
    command: Command, request: pytest.FixtureRequest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, method: str, epoch: int, step: int,
) -> None:  # fmt: skip
    """Stopped within a stage, at its end, and in the next one."""
    text = request.getfixturevalue(method)
    assert command(text, name="whole") == 0
    (tmp_path / "runs/paraphraser.pt").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        stop_in(patch, epoch, step)
        assert command(text, name="parts") == 143
    assert len(steps(tmp_path / "runs/parts")) == 3 * epoch + step
    assert command(text, name="parts") == 0
    assert steps(tmp_path / "runs/parts") == steps(tmp_path / "runs/whole")
    whole, parts = (
        load_file(tmp_path / f"runs/{n}/checkpoints/last.pth") for n in ("whole", "parts")
    )
    assert all(torch.equal(parts["model"][name], value) for name, value in whole["model"].items())
    for role, tensors in whole["extras"].items():
        assert all(torch.equal(parts["extras"][role][k], v) for k, v in tensors.items()), role


CONTRAST = """
  teacher:
    forward_proc: forward_batch_supp_dict
    auxiliary_model_wrapper:
      key: Linear4CRD
      kwargs:
        input_module_path: model.avgpool
        linear_kwargs: {in_features: 64, out_features: 8, bias: true}
        power: 2
    forward_hook: {input: [], output: [model.avgpool, normalizer]}
    requires_grad: true
    frozen_modules: [model]
  student:
    forward_proc: forward_batch_supp_dict
    auxiliary_model_wrapper:
      key: Linear4CRD
      kwargs:
        input_module_path: model.avgpool
        linear_kwargs: {in_features: 64, out_features: 8, bias: true}
        power: 2
    forward_hook: {input: [empty], output: [model.avgpool, normalizer]}
    requires_grad: true
"""
CONTRAST_LOSS = """
        crd:
          criterion:
            key: CRDLoss
            kwargs: {teacher_norm_module_path: normalizer, student_norm_module_path: normalizer,
                     student_empty_module_path: empty, input_size: 8, output_size: 30,
                     num_negative_samples: 12, num_samples: 30, temperature: 0.07, momentum: 0.5}
          weight: 0.8
"""
REVIEW = """
  teacher:
    forward_proc: forward_batch_only
    forward_hook: {input: [layer2.-1.relu, layer3.-1.relu], output: []}
    requires_grad: false
  student:
    forward_proc: forward_batch_only
    auxiliary_model_wrapper:
      key: Student4KnowledgeReview
      kwargs:
        abfs:
          - {path: student_model.layer2.-1.relu, io: input,
             kwargs: {in_channels: 32, mid_channels: 16, out_channels: 32}}
          - {path: student_model.layer3.-1.relu, io: input,
             kwargs: {in_channels: 64, mid_channels: 16, out_channels: 64}}
        sizes: [8, 16]
    forward_hook:
      input: [student_model.layer2.-1.relu, student_model.layer3.-1.relu]
      output: [abf_modules.0, abf_modules.1]
    requires_grad: true
"""
REVIEW_LOSS = """
        layer2:
          criterion:
            key: HierarchicalContextLoss
            kwargs: {student_module_path: abf_modules.1, student_module_io: output,
                     teacher_module_path: layer2.-1.relu, teacher_module_io: input,
                     reduction: mean, output_sizes: [4, 2, 1]}
          weight: 0.000001
"""


def single(training: str, losses: str) -> str:
    return DATA + PAIR + "\ntrain:" + LOADERS + training + CRITERION + CE + losses + TEST


@pytest.mark.slow
def test_contrastive_distillation_goes_on_to_the_bit(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its negatives follow (seed, epoch, index); its bank is part of a checkpoint."""
    wrapped = """dataset_id: digits/train
    dataset_wrapper:
      key: CRDDatasetWrapper
      kwargs: {num_negative_samples: 12, mode: exact, ratio: 1.0}"""
    text = single(CONTRAST, CONTRAST_LOSS).replace("dataset_id: digits/train", wrapped)
    assert command(text, name="whole") == 0
    with monkeypatch.context() as patch:
        stop_in(patch, 1, 1)
        assert command(text, name="parts") == 143
    assert command(text, name="parts") == 0
    assert steps(tmp_path / "runs/parts") == steps(tmp_path / "runs/whole")
    assert all(row["crd"] > 0 for row in steps(tmp_path / "runs/whole"))
    bank = load_file(tmp_path / "runs/whole/checkpoints/last.pth")["extras"]["criterion.crd"]
    assert bank["criterion.memory_v1"].shape == (30, 8)


def test_layers_are_counted_from_the_end(command: Command, tmp_path: Path) -> None:
    """Knowledge review."""
    assert command(single(REVIEW, REVIEW_LOSS)) == 0
    assert all(row["layer2"] > 0 for row in steps(tmp_path / "runs/run"))


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("layer3.-9.relu", "no layer 'layer3.-9.relu'"),
        ("layer4.-1.relu", "no layer 'layer4.-1.relu'"),
    ],
)
def test_layers_that_are_not_there_from_the_end_either(
    command: Command, capsys: pytest.CaptureFixture[str], path: str, told: str
) -> None:
    text = single(REVIEW, REVIEW_LOSS).replace("[layer2.-1.relu, ", f"[{path}, ")
    assert command(text) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("stage2:", "stage3:", "stage3"),
        ("  stage2:\n    num_epochs: 2", "  stage2:", "num_epochs"),
        ("key: CrossEntropyLoss", "key: CrossEntropyLos", "did you mean 'CrossEntropyLoss'"),
        ("stage2:", "learning_rate: 1\n  stage2:", "learning_rate"),
    ],
)
def test_mistakes_in_a_later_stage_are_told_before_the_first(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path, hints: str,
    old: str, new: str, told: str,
) -> None:  # fmt: skip
    assert command(hints.replace(old, new)) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") <= 2
    assert not (tmp_path / "runs").exists()
