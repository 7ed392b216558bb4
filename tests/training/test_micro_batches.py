"""Batches larger than memory: micro-batches give the losses and gradients of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deit.student import ConvStemDeiT, read
from srd.config.fields import Distill
from srd.config.layers import Layer
from srd.config.reading import read_config
from srd.device import Precision
from srd.method.losses import LOSSES, create_loss
from srd.models.outputs import Output
from srd.models.students import Student
from srd.training.micro_batches import MicroBatches, in_parts
from srd.training.task import DistillationTask

BATCH, CLASSES, WIDTH, TEACHER_WIDTH, SIZE = 8, 5, 24, 40, 32
EXACT = Precision(torch.device("cpu"), dtype=torch.float64)


class Teacher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(3 * SIZE * SIZE, TEACHER_WIDTH)
        self.head = nn.Linear(TEACHER_WIDTH, CLASSES)
        self.maps = nn.Linear(3 * SIZE * SIZE, 4 * TEACHER_WIDTH)
        self.sizes: list[int] = []

    @torch.no_grad()
    def forward(self, images: Tensor) -> Output:
        self.sizes.append(len(images))
        features = self.features(images.flatten(1)).relu()
        maps = self.maps(images.flatten(1)).reshape(-1, TEACHER_WIDTH, 2, 2)
        return Output(features, self.head(features), maps=maps)


def distilling(**loss: Any) -> Distill:
    return read_config([Layer("", {"distill": {"loss": loss}})]).distill


def make_task(
    teacher: Teacher,
    distill: Distill | None = None,
    *,
    drop_path: float = 0.0,
    micro_batch: int | None = None,
) -> DistillationTask:
    """The task whose teacher and student see the whole batch, or parts of it."""
    torch.manual_seed(0)
    student = Student(ConvStemDeiT(WIDTH, 3, CLASSES, SIZE, drop_path), read)
    distill = distill or Distill()
    logits = LOSSES[distill.loss.name].reads == "logits"
    student_dim, teacher_dim = (CLASSES, CLASSES) if logits else (WIDTH, TEACHER_WIDTH)
    loss = create_loss(
        distill.loss, student_dim=student_dim, teacher_dim=teacher_dim, train_images=2 * BATCH
    )
    task = DistillationTask(
        student, loss, distill=distill, teach=teacher, smoothing=0.0, precision=EXACT
    ).double()
    for module in task.student.modules():
        if isinstance(module, nn.BatchNorm2d):  # the one thing that sees micro-batches
            module.eval()
    task.share_out(micro_batch)
    return task


@pytest.fixture
def teacher() -> Teacher:
    torch.manual_seed(1)
    return Teacher().double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, mixed targets, keys."""
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw, dtype=torch.float64)
    targets = torch.rand(BATCH, CLASSES, generator=draw, dtype=torch.float64).softmax(dim=1)
    return images, targets, torch.stack([torch.zeros(BATCH), torch.arange(BATCH)], dim=1).long()


def gradients(task: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters()}


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "srd", "match": "correlation"},
        {"name": "srd", "match": "elementwise"},
        {"name": "vkd"},
        {"name": "dkd"},
        {"name": "dist"},
        {"name": "kd_ls"},
        {"name": "fitnet"},
        {"name": "at"},
        {"name": "ickd"},
        {"name": "crd"},
    ],
    ids=lambda loss: "-".join(loss.values()),
)
@pytest.mark.parametrize("size", [1, 3, 4, 8, 100])
def test_losses_and_gradients_are_those_of_the_whole_batch(
    teacher: Teacher, loss: dict[str, str], size: int
) -> None:
    distill = distilling(**loss)
    whole, parts = make_task(teacher, distill), make_task(teacher, distill, micro_batch=size)
    expected = whole.losses(batch(), seed=3)
    expected["loss"].backward()
    teacher.sizes.clear()
    losses = parts.losses(batch(), seed=3)
    losses["loss"].backward()
    kl = ["kl"] if LOSSES[loss["name"]].logits else []
    assert list(losses) == ["loss", "ce", *kl, "repr"]
    for name, value in losses.items():
        assert torch.allclose(value, expected[name], rtol=1e-12), name
    theirs = gradients(whole)
    for name, grad in gradients(parts).items():
        assert torch.allclose(grad, theirs[name], rtol=1e-8, atol=1e-12), name
    assert sum(teacher.sizes) == BATCH and max(teacher.sizes) == min(size, BATCH)


def test_a_scaled_loss_scales_the_gradients(teacher: Teacher) -> None:
    task = make_task(teacher, micro_batch=4)
    task.losses(batch(), seed=3)["loss"].backward()
    plain = gradients(task)
    task.zero_grad()
    (task.losses(batch(), seed=3)["loss"] * 1024).backward()
    for name, grad in gradients(task).items():
        assert torch.allclose(grad, plain[name] * 1024, rtol=1e-12), name


def test_gradients_add_to_those_that_are_there(teacher: Teacher) -> None:
    task = make_task(teacher, micro_batch=4)
    task.losses(batch(), seed=3)["loss"].backward()
    plain = gradients(task)
    task.losses(batch(), seed=3)["loss"].backward()
    for name, grad in gradients(task).items():
        assert torch.allclose(grad, plain[name] * 2, rtol=1e-12), name


def test_both_passes_drop_the_same_paths(teacher: Teacher) -> None:
    task = make_task(teacher, drop_path=0.5, micro_batch=4)
    outputs: list[Any] = []
    task.student.register_forward_hook(lambda *call: outputs.append(call[-1].logits.detach()))
    task.losses(batch(), seed=3)["loss"].backward()
    assert len(outputs) == 4
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])


def test_parts_drop_other_paths_than_each_other(teacher: Teacher) -> None:
    task = make_task(teacher, drop_path=0.5, micro_batch=4)
    images, targets, _ = batch()
    outputs: list[Any] = []
    task.student.register_forward_hook(lambda *call: outputs.append(call[-1].logits.detach()))
    task.losses((images[:4].repeat(2, 1, 1, 1), targets), seed=3)
    assert not torch.equal(outputs[0], outputs[1])


def test_running_statistics_move_once_for_each_micro_batch(teacher: Teacher) -> None:
    task = make_task(teacher, micro_batch=4).train()
    task.losses(batch(), seed=3)["loss"].backward()
    stem = task.model.conv_embed.conv[1]
    assert stem.num_batches_tracked == 2
    assert task.distillation_loss.bn_s.num_batches_tracked == 1


def test_what_the_batch_norms_of_the_stem_change_is_bounded(teacher: Teacher) -> None:
    """They see micro-batches: half a batch of statistics moves losses and gradients this much."""
    task = make_task(teacher, micro_batch=BATCH // 2).train()
    whole = make_task(teacher).train()
    expected = whole.losses(batch(), seed=3)
    expected["loss"].backward()
    losses = task.losses(batch(), seed=3)
    losses["loss"].backward()
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
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, CLASSES)).double()

    def classifier(model: nn.Module) -> DistillationTask:
        student = Student(model, lambda model, images, features=True: Output(None, model(images)))
        distill = distilling(name="none")
        return DistillationTask(
            student, None, distill=distill, teach=None, smoothing=0.1, precision=EXACT
        )

    whole, parts = classifier(copy.deepcopy(model)), classifier(model)
    parts.share_out(3)
    images, targets, _ = batch()
    for labels in (targets, torch.arange(BATCH) % CLASSES):
        for task in (whole, parts):
            task.zero_grad()
            task.losses((images, labels), seed=0)["loss"].backward()
        theirs = gradients(whole)
        for name, grad in gradients(parts).items():
            assert torch.allclose(grad, theirs[name], rtol=1e-10), name


def test_without_a_graph_the_outputs_are_those_of_the_parts(teacher: Teacher) -> None:
    """What a task reads of the student stays what it was: the parts that it leaves out, too."""
    torch.manual_seed(0)
    student = Student(
        nn.Linear(4, 3).double(), lambda model, x, features=True: Output(None, model(x))
    )
    micro = MicroBatches(student, 3, EXACT)
    images = torch.randn(8, 4, dtype=torch.float64)
    with torch.no_grad():
        said = micro(images)
    assert said.features is None and said.distilled_logits is None and said.tokens is None
    assert torch.allclose(said.logits, student.model(images), rtol=1e-12)


def test_a_teacher_in_parts_says_the_same(teacher: Teacher) -> None:
    images, *_ = batch()
    whole, parts = teacher(images), in_parts(teacher, 3)(images)
    assert teacher.sizes == [8, 3, 3, 2] and parts.distilled_logits is None
    assert torch.allclose(parts.features, whole.features, rtol=1e-12)
    assert torch.allclose(parts.logits, whole.logits, rtol=1e-12)
