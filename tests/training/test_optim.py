"""The optimizer, its schedule, and one update, each against the design's formula."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deit.student import ConvStemDeiT, read
from srd.config.fields import Distill, Optim
from srd.device import Precision
from srd.errors import RunFailed, UserError
from srd.method.losses import create_loss
from srd.models.outputs import Output
from srd.models.students import Student
from srd.training.optim import check_optimizer, create_optimizer, create_schedule
from srd.training.task import DistillationTask
from srd.training.update import update

CPU = torch.device("cpu")
CLASSES, BATCH, TEACHER_WIDTH = 5, 8, 40
COSINE = Optim()
STEPS = Optim(
    name="momentum",
    lr=0.1,
    schedule="step",
    decay_epochs=(3, 6, 7),
    decay_rate=0.1,
    warmup_epochs=0,
)


def say(images: Tensor) -> Output:
    draw = torch.Generator().manual_seed(2)
    features = torch.randn(BATCH, TEACHER_WIDTH, generator=draw)
    return Output(features, torch.randn(BATCH, CLASSES, generator=draw))


@pytest.fixture
def task() -> DistillationTask:
    torch.manual_seed(0)
    student = Student(ConvStemDeiT(24, heads=3, num_classes=CLASSES, image_size=16), read)
    distill = Distill()
    loss = create_loss(distill.loss, student_dim=24, teacher_dim=TEACHER_WIDTH)
    return DistillationTask(
        student, loss, distill=distill, teach=say, smoothing=0.0, precision=Precision(CPU)
    )


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 3, 16, 16, generator=draw), torch.arange(BATCH) % CLASSES


def optimizer_of(
    task: DistillationTask, optim: Optim = COSINE, batch_size: int = 512
) -> torch.optim.Optimizer:
    return create_optimizer(task, optim, batch_size=batch_size, device=CPU)


def decays(task: DistillationTask, optim: Optim = COSINE) -> dict[str, float]:
    """Weight decay of every parameter, by name."""
    names = {parameter: name for name, parameter in task.named_parameters()}
    groups = optimizer_of(task, optim).param_groups
    return {names[p]: group["weight_decay"] for group in groups for p in group["params"]}


def test_the_optimizer_is_the_papers(task: DistillationTask) -> None:
    optimizer = optimizer_of(task)
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert group["lr"] == 5e-4 and group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8


@pytest.mark.parametrize("decay_all", [False, True])
def test_everything_is_in_the_optimizer_once(task: DistillationTask, decay_all: bool) -> None:
    optimizer = optimizer_of(task, Optim(decay_all=decay_all))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len({id(p) for p in held}) == len(list(task.parameters()))


def test_the_projectors_weight_decays_and_its_bias_does_not(task: DistillationTask) -> None:
    found = decays(task)
    assert found["distillation_loss.embed.weight"] == 0.05
    assert found["distillation_loss.embed.bias"] == 0


def test_only_matrices_decay_and_no_token(task: DistillationTask) -> None:
    found, parameters = decays(task), dict(task.named_parameters())
    assert set(found) == set(parameters)
    for name, decay in found.items():
        token = name in ("student.model.pos_embed", "student.model.cls_token")
        assert decay == (0 if token or parameters[name].ndim < 2 else 0.05), name
    assert found["student.model.head_conv.weight"] == 0.05
    assert found["student.model.conv_embed.proj.weight"] == 0.05


def test_weight_decay_is_a_setting(task: DistillationTask) -> None:
    assert set(decays(task, Optim(weight_decay=0.3)).values()) == {0.0, 0.3}


@pytest.mark.parametrize(("size", "rate"), [(256, 2.5e-4), (512, 5e-4), (1024, 1e-3)])
def test_the_learning_rate_scales_with_the_batch(
    task: DistillationTask, size: int, rate: float
) -> None:
    assert optimizer_of(task, batch_size=size).param_groups[0]["lr"] == pytest.approx(rate)


MATRIX = "student.model.head.weight"


def test_adamw_by_name_makes_torchs_bits(task: DistillationTask) -> None:
    """The paper's numbers, written out, over the paper's two groups: every state to the bit."""
    twin = copy.deepcopy(task)
    held = {"student.model.pos_embed", "student.model.cls_token"}
    named = list(twin.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or name in held]
    decaying = [p for name, p in named if not (p.ndim < 2 or name in held)]
    reference = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decaying, "weight_decay": 0.05}],
        lr=5e-4 * 256 / 512,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    optimizer = optimizer_of(task, batch_size=256)
    assert type(optimizer) is type(reference) and len(optimizer.param_groups) == 2
    for ours, theirs in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert {k: v for k, v in ours.items() if k != "params"} == {
            k: v for k, v in theirs.items() if k != "params"
        }
    for _ in range(3):
        for part, stepper in ((task, optimizer), (twin, reference)):
            stepper.zero_grad()
            part.losses(batch(), seed=0)["loss"].backward()
            stepper.step()
    for (name, ours), (_, theirs) in zip(task.named_parameters(), named, strict=True):
        assert torch.equal(ours, theirs), name
        for key, value in optimizer.state[ours].items():
            assert torch.equal(value, reference.state[theirs][key]), (name, key)


@pytest.mark.parametrize(("name", "nesterov"), [("momentum", False), ("sgd", True)])
@pytest.mark.parametrize("momentum", [None, 0.5])
def test_sgd_is_torchs(
    task: DistillationTask, name: str, nesterov: bool, momentum: float | None
) -> None:
    twin = copy.deepcopy(task)
    optim = Optim(
        name=name, lr=0.1, lr_batch=256, weight_decay=1e-4, momentum=momentum, decay_all=True
    )
    optimizer = optimizer_of(task, optim, 256)
    reference = torch.optim.SGD(
        twin.parameters(), lr=0.1, momentum=momentum or 0.9, weight_decay=1e-4, nesterov=nesterov
    )
    assert type(optimizer) is torch.optim.SGD
    for _ in range(3):
        for part, stepper in ((task, optimizer), (twin, reference)):
            stepper.zero_grad()
            part.losses(batch(), seed=0)["ce"].backward()
            stepper.step()
    for (key, ours), theirs in zip(task.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), key


def test_all_may_decay_as_torchdistills_recipes_do(task: DistillationTask) -> None:
    assert set(decays(task, Optim(decay_all=True)).values()) == {0.05}
    assert len(optimizer_of(task, Optim(decay_all=True)).param_groups) == 1


def test_what_is_frozen_is_not_in_the_optimizer(task: DistillationTask) -> None:
    task.get_parameter(MATRIX).requires_grad_(False)
    for decay_all in (False, True):
        assert MATRIX not in decays(task, Optim(decay_all=decay_all))


@pytest.mark.parametrize(
    "name", ["adam", "lamb", "lion", "rmsprop", "nadamw", "adafactor", "adopt", "adabelief"]
)
def test_timms_optimizers_train(task: DistillationTask, name: str) -> None:
    optimizer = optimizer_of(task, Optim(name=name, lr=1e-3), 512)
    first = task.losses(batch(), seed=0)["loss"].item()
    for _ in range(5):
        optimizer.zero_grad()
        task.losses(batch(), seed=0)["loss"].backward()
        optimizer.step()
    assert task.losses(batch(), seed=0)["loss"].item() < first


def test_settings_reach_the_optimizer(task: DistillationTask) -> None:
    optim = Optim(name="lamb", betas=(0.5, 0.75), eps=1e-3, weight_decay=0.2)
    for group in optimizer_of(task, optim).param_groups:
        assert tuple(group["betas"]) == (0.5, 0.75) and group["eps"] == 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "adamv"}, "unknown optimizer 'adamv' (optim.name) (did you mean 'adam"),
        ({"name": "fusedadam"}, "unknown optimizer 'fusedadam'"),  # of a package beside timm
        ({"name": "adahessian"}, "second order"),
        ({"name": "adamw", "momentum": 0.9}, "optim.momentum has no effect with optim.name=adamw"),
        ({"name": "momentum", "betas": (0.9, 0.99)}, "optim.betas has no effect"),
        ({"name": "sgd", "eps": 1e-6}, "optim.eps has no effect with optim.name=sgd"),
        ({"name": "lion", "eps": 1e-6}, "optim.eps has no effect with optim.name=lion"),
        ({"name": "adan", "betas": (0.9, 0.99)}, "optim.betas"),
    ],
)
def test_what_an_optimizer_does_not_read_is_refused(
    task: DistillationTask, settings: dict[str, Any], said: str
) -> None:
    optim = Optim(**settings)
    for refused in (lambda: check_optimizer(optim), lambda: optimizer_of(task, optim)):
        with pytest.raises(UserError) as caught:
            refused()
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_an_optimizer_reads_is_given_to_it() -> None:
    assert check_optimizer(Optim()) == {}
    given = {"betas": (0.8, 0.9), "eps": 1e-6}
    assert check_optimizer(Optim(**given)) == given
    assert check_optimizer(Optim(name="momentum", momentum=0.0)) == {"momentum": 0.0}


Rate = Callable[[int], float]


def scheduled(
    task: DistillationTask, optim: Optim, size: int, steps_per_epoch: int, epochs: int
) -> Rate:
    """The learning rate of a step, asked for as the loop does."""
    optimizer = optimizer_of(task, optim, size)
    schedule = create_schedule(
        optimizer, optim, batch_size=size, steps_per_epoch=steps_per_epoch, epochs=epochs
    )

    def rate(step: int) -> float:
        schedule.step_update(step)
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        return rates.pop()

    return rate


@pytest.mark.parametrize("prefix", [False, True])
def test_the_papers_schedule(task: DistillationTask, prefix: bool) -> None:
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


def test_a_schedule_is_a_function_of_the_step(task: DistillationTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=1), 512, 10, 5)
    forward = [rate(step) for step in range(50)]
    assert [rate(step) for step in reversed(range(50))] == forward[::-1]
    assert max(forward) <= 5e-4 and len(set(forward)) == 50


def test_without_a_warm_up_the_first_step_has_the_full_rate(task: DistillationTask) -> None:
    assert scheduled(task, Optim(warmup_epochs=0), 512, 10, 5)(0) == 5e-4


def test_a_warm_up_longer_than_the_run_only_warms_up(task: DistillationTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=20), 512, 10, 2)
    assert [rate(step) for step in (0, 10, 19)] == pytest.approx(
        [5e-7 + (5e-4 - 5e-7) * step / 200 for step in (0, 10, 19)]
    )


def test_a_fraction_of_an_epoch_can_warm_up(task: DistillationTask) -> None:
    rate = scheduled(task, Optim(warmup_epochs=0.5), 512, 10, 2)
    assert rate(4) < rate(5) and rate(5) > rate(6)


def test_steps_are_torchs_at_every_epoch(task: DistillationTask) -> None:
    steps, epochs = 4, 9
    rate = scheduled(task, STEPS, 512, steps, epochs)
    weight = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.MultiStepLR(reference, [3, 6, 7], 0.1)
    for epoch in range(epochs):
        for step in range(steps):
            expected = reference.param_groups[0]["lr"]
            assert rate(epoch * steps + step) == pytest.approx(expected, rel=1e-12), (epoch, step)
        reference.step()
        theirs.step()
    assert expected == pytest.approx(1e-4)


@pytest.mark.parametrize("prefix", [False, True])
def test_steps_after_a_warm_up(task: DistillationTask, prefix: bool) -> None:
    optim = replace(STEPS, warmup_epochs=2, warmup_lr=0.0, warmup_prefix=prefix)
    rate = scheduled(task, optim, 512, 10, 12)
    assert [rate(step) for step in (0, 10, 19)] == pytest.approx([0, 0.05, 0.095])
    moved = 20 if prefix else 0
    for step, expected in ((20, 0.1), (29, 0.1), (30, 1e-2), (59, 1e-2), (60, 1e-3), (70, 1e-4)):
        at = step if step < 30 else step + moved
        assert rate(at) == pytest.approx(expected), step


def test_steps_scale_with_the_batch_and_come_back_from_a_checkpoint(task: DistillationTask) -> None:
    rate = scheduled(task, STEPS, 256, 4, 9)
    assert [rate(step) for step in (0, 12, 11)] == pytest.approx([0.05, 0.005, 0.05])
    optimizer, other = optimizer_of(task, STEPS), optimizer_of(task, STEPS)
    first, second = (
        create_schedule(o, STEPS, batch_size=512, steps_per_epoch=n, epochs=9)
        for o, n in ((optimizer, 4), (other, 1))
    )
    second.load_state_dict(first.state_dict())
    for step in (0, 11, 12, 30):
        first.step_update(step)
        second.step_update(step)
        assert optimizer.param_groups[0]["lr"] == other.param_groups[0]["lr"]


OFF = torch.amp.GradScaler("cpu", enabled=False)


def one_update(
    task: DistillationTask, scaler: torch.amp.GradScaler, clip_norm: float | None
) -> tuple[dict[str, float], float]:
    losses = task.losses(batch(), seed=0)
    terms, norm = update(
        losses["loss"],
        {name: value.detach() for name, value in losses.items()},
        optimizer=optimizer_of(task),
        scaler=scaler,
        clip_norm=clip_norm,
        where="epoch 1, step 12",
    )
    return terms.wait(), norm.wait()["grad_norm"]


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_the_gradient_is_clipped_and_told_unscaled(
    task: DistillationTask, clip_norm: float | None
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


def test_an_update_trains_the_projector(task: DistillationTask) -> None:
    before = {name: value.clone() for name, value in task.named_parameters()}
    one_update(task, OFF, 15.0)
    moved = {
        name for name, value in task.named_parameters() if not torch.equal(value, before[name])
    }
    assert moved == set(before)


@pytest.mark.parametrize(
    ("poisoned", "named", "not_named"),
    [
        ("student.model.head_conv.weight", {"loss", "kl"}, {"ce", "repr"}),
        ("student.model.head.bias", {"loss", "ce"}, {"kl", "repr"}),
        ("distillation_loss.embed.weight", {"loss", "repr"}, {"ce", "kl"}),
    ],
)
@pytest.mark.parametrize("enabled", [False, True])
def test_a_loss_that_is_nan_is_named_and_moves_nothing(
    task: DistillationTask, poisoned: str, named: set[str], not_named: set[str], enabled: bool
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
