"""Batches larger than memory: micro-batches give the losses and gradients of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deit.student import ConvStemDeiT
from srd.config.fields import Distill
from srd.device import Precision
from srd.models.outputs import TeacherOutput
from srd.models.teacher import FrozenTeacher, Normalization
from srd.training.micro_batches import MicroBatches
from srd.training.task import ClassifierTask, StudentTask

BATCH, CLASSES, TEACHER_WIDTH = 8, 5, 40
EXACT = Precision(torch.device("cpu"), dtype=torch.float64)
PLAIN = Normalization((0.5,) * 3, (0.5,) * 3)


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = (
            nn.Linear(3 * 16 * 16, TEACHER_WIDTH),
            nn.Linear(TEACHER_WIDTH, CLASSES),
        )

    def forward(self, images: Tensor) -> TeacherOutput:
        features = self.features(images.flatten(1)).relu()
        return TeacherOutput(features, self.head(features))


def make_task(match: str = "correlation", drop_path: float = 0.0) -> StudentTask:
    torch.manual_seed(0)
    student = ConvStemDeiT(24, 3, CLASSES, 16, drop_path)
    task = StudentTask(student, Distill(match=match), TEACHER_WIDTH).double()
    for module in task.student.modules():
        if isinstance(module, nn.BatchNorm2d):  # the one thing that sees micro-batches
            module.eval()
    return task


@pytest.fixture
def teacher() -> FrozenTeacher:
    torch.manual_seed(1)
    return FrozenTeacher(Teacher(), lambda model, x: model(x), PLAIN, PLAIN).double()


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, 16, 16, generator=draw, dtype=torch.float64)
    return images, torch.rand(BATCH, CLASSES, generator=draw, dtype=torch.float64).softmax(dim=1)


def gradients(task: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters()}


@pytest.mark.parametrize("match", ["correlation", "elementwise"])
@pytest.mark.parametrize("size", [1, 3, 4, 8, 100])
def test_losses_and_gradients_are_those_of_the_whole_batch(
    teacher: FrozenTeacher, match: str, size: int
) -> None:
    task, (images, targets) = make_task(match), batch()
    whole = copy.deepcopy(task)
    expected = whole(images, targets, teacher(images))
    expected["loss"].backward()
    micro = MicroBatches(task, teacher, size, EXACT)
    losses = micro.losses(images, targets, seed=3)
    micro.backward(losses["loss"])
    assert list(losses) == ["loss", "ce", "kl", "repr"]
    for name, value in losses.items():
        assert torch.allclose(value, expected[name], rtol=1e-12), name
    for name, grad in gradients(task).items():
        assert torch.allclose(grad, gradients(whole)[name], rtol=1e-8, atol=1e-12), name


def test_a_scaled_loss_scales_the_gradients(teacher: FrozenTeacher) -> None:
    task, (images, targets) = make_task(), batch()
    micro = MicroBatches(task, teacher, 4, EXACT)
    micro.backward(micro.losses(images, targets, seed=3)["loss"])
    plain = gradients(task)
    task.zero_grad()
    micro.backward(micro.losses(images, targets, seed=3)["loss"] * 1024)
    for name, grad in gradients(task).items():
        assert torch.allclose(grad, plain[name] * 1024, rtol=1e-12), name


def test_both_passes_drop_the_same_paths(teacher: FrozenTeacher) -> None:
    task, (images, targets) = make_task(drop_path=0.5), batch()
    micro = MicroBatches(task, teacher, 4, EXACT)
    outputs: list[Any] = []
    task.student.register_forward_hook(lambda *call: outputs.append(call[-1].logits.detach()))
    micro.backward(micro.losses(images, targets, seed=3)["loss"])
    assert len(outputs) == 4
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])


def test_running_statistics_move_once_for_each_micro_batch(teacher: FrozenTeacher) -> None:
    task, (images, targets) = make_task().train(), batch()
    micro = MicroBatches(task, teacher, 4, EXACT)
    micro.backward(micro.losses(images, targets, seed=3)["loss"])
    stem = task.student.conv_embed.conv[1]
    assert stem.num_batches_tracked == 2
    assert task.distillation_loss.bn_s.num_batches_tracked == 1


def test_what_the_batch_norms_of_the_stem_change_is_bounded(teacher: FrozenTeacher) -> None:
    """They see micro-batches: half a batch of statistics moves losses and gradients this much."""
    task, (images, targets) = make_task().train(), batch()
    whole = copy.deepcopy(task)
    expected = whole(images, targets, teacher(images))
    expected["loss"].backward()
    micro = MicroBatches(task, teacher, BATCH // 2, EXACT)
    losses = micro.losses(images, targets, seed=3)
    micro.backward(losses["loss"])
    for name, value in losses.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=0.01), name
    ours, theirs = (
        torch.cat([grad.flatten() for grad in gradients(module).values()])
        for module in (task, whole)
    )
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.9
    assert not torch.allclose(ours, theirs, rtol=1e-3)  # it is not nothing, and the test can fail


def test_a_classifier_in_micro_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES)).double()
    task, (images, targets) = ClassifierTask(model), batch()
    whole = copy.deepcopy(task)
    whole(images, targets)["loss"].backward()
    micro = MicroBatches(task, None, 3, EXACT)
    micro.backward(micro.losses(images, targets, seed=0)["loss"])
    for name, grad in gradients(task).items():
        assert torch.allclose(grad, gradients(whole)[name], rtol=1e-10), name
