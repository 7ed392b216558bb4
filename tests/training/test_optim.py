"""The optimizer, its schedule, and one update, each against the design's formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deit.student import ConvStemDeiT
from srd.config.fields import Distill, Optim
from srd.errors import RunFailed
from srd.models.outputs import TeacherOutput
from srd.training.optim import create_optimizer, create_schedule
from srd.training.task import StudentTask
from srd.training.update import update

CPU = torch.device("cpu")
CLASSES, BATCH, TEACHER_WIDTH = 5, 8, 40


@pytest.fixture
def task() -> StudentTask:
    torch.manual_seed(0)
    student = ConvStemDeiT(24, heads=3, num_classes=CLASSES, image_size=16)
    return StudentTask(student, Distill(), TEACHER_WIDTH)


def batch() -> tuple[Tensor, Tensor, TeacherOutput]:
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(BATCH, TEACHER_WIDTH, generator=draw)
    teacher = TeacherOutput(features, torch.randn(BATCH, CLASSES, generator=draw))
    targets = torch.arange(BATCH) % CLASSES
    return torch.randn(BATCH, 3, 16, 16, generator=draw), targets, teacher


def decays(task: StudentTask, config: Optim | None = None) -> dict[str, float]:
    """Weight decay of every parameter, by name."""
    optimizer = create_optimizer(task, config or Optim(), 512, CPU)
    names = {parameter: name for name, parameter in task.named_parameters()}
    groups = optimizer.param_groups
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


def test_the_optimizer_is_the_papers(task: StudentTask) -> None:
    optimizer = create_optimizer(task, Optim(), 512, CPU)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["lr"] == 5e-4 and group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8


def test_everything_is_in_the_optimizer_once(task: StudentTask) -> None:
    optimizer = create_optimizer(task, Optim(), 512, CPU)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(task.parameters()))


def test_the_projectors_weight_decays_and_its_bias_does_not(task: StudentTask) -> None:
    found = decays(task)
    assert found["distillation_loss.embed.weight"] == 0.05
    assert found["distillation_loss.embed.bias"] == 0


def test_only_matrices_decay_and_no_token(task: StudentTask) -> None:
    found, parameters = decays(task), dict(task.named_parameters())
    assert set(found) == set(parameters)
    for name, decay in found.items():
        token = name in ("student.pos_embed", "student.cls_token")
        assert decay == (0 if token or parameters[name].ndim < 2 else 0.05), name
    assert found["student.head_conv.weight"] == found["student.conv_embed.proj.weight"] == 0.05


def test_weight_decay_is_a_setting(task: StudentTask) -> None:
    assert set(decays(task, Optim(weight_decay=0.3)).values()) == {0.0, 0.3}


@pytest.mark.parametrize(("size", "rate"), [(256, 2.5e-4), (512, 5e-4), (1024, 1e-3)])
def test_the_learning_rate_scales_with_the_batch(task: StudentTask, size: int, rate: float) -> None:
    assert create_optimizer(task, Optim(), size, CPU).param_groups[0]["lr"] == pytest.approx(rate)


def scheduled(
    task: StudentTask, config: Optim, size: int, steps: int, epochs: int
) -> Callable[[int], float]:
    """The learning rate of a step, asked for as the engine does."""
    optimizer = create_optimizer(task, config, size, CPU)
    schedule = create_schedule(optimizer, config, size, steps, epochs)

    def rate(step: int) -> float:
        schedule.step_update(step)
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        return rates.pop()

    return rate


@pytest.mark.parametrize("prefix", [False, True])
def test_the_papers_schedule(task: StudentTask, prefix: bool) -> None:
    """300 epochs at batch 1024: 1,251 steps an epoch on ImageNet."""
    steps, epochs = 1251, 300
    rate = scheduled(task, Optim(warmup_prefix=prefix), 1024, steps, epochs)
    warm, total = 20 * steps, 300 * steps
    peak, low, start = 1e-3, 1e-5, 1e-6

    def cosine(step: int) -> float:
        done = (step - warm) / (total - warm) if prefix else step / total
        return low + (peak - low) * (1 + math.cos(math.pi * done)) / 2

    assert rate(0) == pytest.approx(start)
    assert rate(warm // 2) == pytest.approx((start + peak) / 2)
    assert rate(warm - 1) == pytest.approx(start + (peak - start) * (warm - 1) / warm)
    for step in (warm, warm + 1, total // 2, total - 1):
        assert rate(step) == pytest.approx(cosine(step), rel=1e-9)
    assert rate(warm) == pytest.approx(peak if prefix else 0.98918e-3, rel=1e-5)
    assert low < rate(total - 1) < low * 1.0001


def test_a_schedule_is_a_function_of_the_step(task: StudentTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=1), 512, 10, 5)
    forward = [rate(step) for step in range(50)]
    assert [rate(step) for step in reversed(range(50))] == forward[::-1]
    assert max(forward) <= 5e-4 and len(set(forward)) == 50


def test_without_a_warm_up_the_first_step_has_the_full_rate(task: StudentTask) -> None:
    assert scheduled(task, Optim(warmup_epochs=0), 512, 10, 5)(0) == 5e-4


def test_a_warm_up_longer_than_the_run_only_warms_up(task: StudentTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=20), 512, 10, 2)
    assert [rate(step) for step in (0, 10, 19)] == pytest.approx(
        [5e-7 + (5e-4 - 5e-7) * step / 200 for step in (0, 10, 19)]
    )


def test_a_fraction_of_an_epoch_can_warm_up(task: StudentTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=0.5), 512, 10, 2)
    assert rate(4) < rate(5) and rate(5) > rate(6)


OFF = torch.amp.GradScaler("cpu", enabled=False)


def one_update(
    task: StudentTask, scaler: torch.amp.GradScaler, clip_norm: float | None
) -> tuple[dict[str, float], float]:
    optimizer = create_optimizer(task, Optim(), 512, CPU)
    losses = task(*batch())
    logged = {name: value.detach() for name, value in losses.items()}
    terms, norm = update(losses, logged, optimizer, scaler, clip_norm, "epoch 1, step 12")
    return terms, norm.wait()["grad_norm"]


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_gradient_is_clipped_and_told_unscaled(
    task: StudentTask, clip_norm: float | None
) -> None:
    twin = copy.deepcopy(task)
    scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**16)
    terms, norm = one_update(task, scaler, clip_norm)
    plain_terms, plain_norm = one_update(twin, OFF, clip_norm)
    assert norm == pytest.approx(plain_norm, rel=1e-5) and 0.5 < norm < 100
    assert terms == plain_terms
    for (name, weight), other in zip(task.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(weight.grad, other.grad, rtol=1e-4, atol=1e-7), name
    clipped = math.sqrt(sum(p.grad.square().sum().item() for p in task.parameters()))
    assert clipped == pytest.approx(norm if clip_norm is None else clip_norm, rel=1e-4)


def test_an_update_trains_the_projector(task: StudentTask) -> None:
    before = {name: value.clone() for name, value in task.named_parameters()}
    one_update(task, OFF, 15.0)
    moved = {
        name for name, value in task.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == set(before)


@pytest.mark.parametrize(
    ("poisoned", "named", "not_named"),
    [
        ("student.head_conv.weight", {"loss", "kl"}, {"ce", "repr"}),
        ("student.head.bias", {"loss", "ce"}, {"kl", "repr"}),
        ("distillation_loss.embed.weight", {"loss", "repr"}, {"ce", "kl"}),
    ],
)
@pytest.mark.parametrize("enabled", [False, True])
def test_a_loss_that_is_nan_is_named_and_moves_nothing(
    task: StudentTask, poisoned: str, named: set[str], not_named: set[str], enabled: bool
) -> None:
    with torch.no_grad():
        task.get_parameter(poisoned).fill_(math.nan)
    before = {name: value.clone() for name, value in task.named_parameters()}
    with pytest.raises(RunFailed, match="epoch 1, step 12") as caught:
        one_update(task, torch.amp.GradScaler("cpu", enabled=enabled), 15.0)
    assert all(f"{name} is nan" in str(caught.value) for name in named)
    assert not any(f"{name} is" in str(caught.value) for name in not_named)
    for name, value in task.named_parameters():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
