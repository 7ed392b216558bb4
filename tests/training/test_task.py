"""Tasks: the losses are what the design says, all that is trained gets a gradient, nothing is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn

from deit.student import ConvStemDeiT
from srd.config.fields import Distill
from srd.models.outputs import TeacherOutput
from srd.training.task import ClassifierTask, StudentTask, split_weights

WIDTH, TEACHER_WIDTH, CLASSES, BATCH = 24, 40, 5, 8


def make_task(config: Distill | None = None, smoothing: float = 0.0, seed: int = 0) -> StudentTask:
    torch.manual_seed(seed)
    student = ConvStemDeiT(WIDTH, heads=3, num_classes=CLASSES, image_size=32)
    return StudentTask(student, config or Distill(), TEACHER_WIDTH, smoothing)


def batch(seed: int = 1) -> tuple[Tensor, Tensor, TeacherOutput]:
    """Images, mixed targets, and what a teacher might say."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 32, 32, generator=draw)
    targets = torch.rand(BATCH, CLASSES, generator=draw).softmax(dim=1)
    features = torch.randn(BATCH, TEACHER_WIDTH, generator=draw).relu()
    return images, targets, TeacherOutput(features, torch.randn(BATCH, CLASSES, generator=draw))


def log_sum(z_s: Tensor, z_t: Tensor, projector: nn.Linear, match: str) -> Tensor:
    """The representation loss, from the design, in float64."""
    projected = z_s.double() @ projector.weight.double().T + projector.bias.double()

    def normalised(z: Tensor, eps: float) -> Tensor:
        return (z - z.mean(dim=0)) / (z.var(dim=0, correction=0) + eps).sqrt()

    if match == "elementwise":
        difference = normalised(projected, 1e-4) - normalised(z_t.double(), 1e-4)
        return (difference**4).sum().log()
    c = (normalised(projected, 0) * normalised(z_t.double(), 0)).mean(dim=0)
    return (((c - 1) ** 4).sum() + 1e-5).log()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q = (teacher / temperature).softmax(dim=1)
    log_p = (student / temperature).log_softmax(dim=1)
    return temperature**2 * (q * (q.log() - log_p)).sum() / len(q)


@pytest.mark.parametrize("match", ["correlation", "elementwise"])
def test_srd_is_the_weighted_sum_of_three_terms(match: str) -> None:
    weights = {"ce_weight": 0.5, "kl_weight": 3.0, "repr_weight": 0.25}
    task = make_task(Distill(match=match, temperature=2.0, **weights))
    images, targets, teacher = batch()
    out = task.student(images)
    losses = task(images, targets, teacher)
    assert list(losses) == ["loss", "ce", "kl", "repr"]
    ce = soft_cross_entropy(out.logits, targets)
    kl = divergence(out.conv_logits, teacher.logits, 2.0)
    distance = log_sum(out.features, teacher.features, task.distillation_loss.projector, match)
    assert losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert losses["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert losses["repr"].item() == pytest.approx(distance.item(), rel=1e-5)
    total = 0.5 * ce + 3.0 * kl + 0.25 * distance
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_all_weights_are_1_by_default() -> None:
    losses = make_task()(*batch())
    assert losses["loss"].item() == pytest.approx(
        sum(losses[name].item() for name in ("ce", "kl", "repr")), rel=1e-6
    )


def test_kd_has_no_representation_loss() -> None:
    task = make_task(Distill(method="kd"))
    images, targets, teacher = batch()
    losses = task(images, targets, teacher)
    assert list(losses) == ["loss", "ce", "kl"]
    assert losses["loss"].item() == pytest.approx((losses["ce"] + losses["kl"]).item(), rel=1e-6)
    assert losses["kl"].item() == pytest.approx(
        divergence(task.student(images).conv_logits, teacher.logits, 1.0).item(), rel=1e-5
    )
    assert not any(name.startswith("distillation_loss") for name in task.state_dict())


def test_alone_both_heads_learn_the_classes() -> None:
    task = make_task(Distill(method="none"))
    images, targets, _ = batch()
    out, losses = task.student(images), task(images, targets)
    assert list(losses) == ["loss", "ce"]
    both = [soft_cross_entropy(logits, targets) for logits in (out.logits, out.conv_logits)]
    assert losses["loss"].item() == pytest.approx((sum(both) / 2).item(), rel=1e-5)


def test_class_indices_are_smoothed_and_mixed_targets_are_not() -> None:
    images, mixed, teacher = batch()
    indices = torch.arange(BATCH) % CLASSES
    smooth = torch.full((BATCH, CLASSES), 0.1 / CLASSES)
    smooth[torch.arange(BATCH), indices] += 0.9
    task = make_task(smoothing=0.1)
    out = task.student(images)
    for targets, meant in ((indices, smooth), (mixed, mixed)):
        ce = task(images, targets, teacher)["ce"].item()
        assert ce == pytest.approx(soft_cross_entropy(out.logits, meant).item(), rel=1e-5)


@pytest.mark.parametrize("method", ["srd", "kd", "none"])
@pytest.mark.parametrize("match", ["correlation", "elementwise"])
def test_every_parameter_gets_a_gradient(method: str, match: str) -> None:
    task = make_task(Distill(method=method, match=match))
    images, targets, teacher = batch()
    task(images, targets, None if method == "none" else teacher)["loss"].backward()
    names = dict(task.named_parameters())
    assert ("distillation_loss.embed.weight" in names) == (method == "srd")
    for name, parameter in names.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A constant added to every projection is normalised away: only there is the gradient zero.
        if name != "distillation_loss.embed.bias":
            assert parameter.grad.abs().max() > 0, name


def test_the_projector_learns_from_the_representation_loss() -> None:
    task = make_task()
    projector = task.distillation_loss.projector
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.05)
    images, targets, teacher = batch()
    first = task(images, targets, teacher)["repr"].item()
    for _ in range(50):
        optimizer.zero_grad()
        task(images, targets, teacher)["repr"].backward()
        optimizer.step()
    assert task(images, targets, teacher)["repr"].item() < first - 0.5


def test_losses_leave_autocast() -> None:
    task, (images, targets, teacher) = make_task(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = task(images, targets, teacher)
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_weights_carry_the_released_names() -> None:
    task = make_task()
    student, own = task.student.state_dict(), set(task.weights())
    extra = {f"distillation_loss.embed.{name}" for name in ("weight", "bias")}
    for side in ("bn_s", "bn_t"):
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        extra |= {f"distillation_loss.{side}.{name}" for name in statistics}
    assert own == set(student) | extra
    assert task.weights()["distillation_loss.embed.weight"].shape == (TEACHER_WIDTH, WIDTH)


def test_weights_come_back() -> None:
    task, other = make_task(seed=0), make_task(seed=1)
    task(*batch())  # moves statistics
    other.load_weights({name: value.clone() for name, value in task.weights().items()})
    assert all(torch.equal(value, other.weights()[n]) for n, value in task.weights().items())
    images, targets, teacher = batch(seed=2)
    assert torch.equal(
        task(images, targets, teacher)["loss"], other(images, targets, teacher)["loss"]
    )


def test_weights_are_loaded_strictly() -> None:
    task = make_task()
    for lost in ("distillation_loss.embed.bias", "head.weight"):
        weights = {name: value for name, value in task.weights().items() if name != lost}
        with pytest.raises(RuntimeError, match=lost.removeprefix("distillation_loss.")):
            task.load_weights(weights)


def test_released_weights_are_split_into_student_and_projector() -> None:
    task = make_task()
    student, projector = split_weights(task.weights())
    assert set(student) == set(task.student.state_dict())
    assert set(projector) == set(task.distillation_loss.state_dict())


def test_what_is_evaluated_is_the_student_alone() -> None:
    task = make_task()
    assert task.model is task.student


def test_a_scalar_of_the_loss_does_not_touch_the_teacher() -> None:
    task, (images, targets, teacher) = make_task(), batch()
    seen = TeacherOutput(*(value.requires_grad_() for value in teacher))
    task(images, targets, seen)["loss"].backward()
    assert all(value.grad is None for value in seen)


def test_a_classifier_learns_by_cross_entropy() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_byobnet", num_classes=CLASSES)
    task, (images, targets, _) = ClassifierTask(model, smoothing=0.1), batch()
    model.eval()
    losses = task(images, targets)
    assert list(losses) == ["loss", "ce"] and torch.equal(losses["loss"], losses["ce"])
    expected = soft_cross_entropy(model(images), targets).item()
    assert losses["ce"].item() == pytest.approx(expected, rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None for p in task.parameters())
    assert set(task.weights()) == set(model.state_dict()) and task.model is model


def test_a_temperature_of_1_is_the_released_one() -> None:
    images, targets, teacher = batch()
    plain, warm = Distill(), replace(Distill(), temperature=4.0)
    plain_kl, warm_kl = (
        make_task(config)(images, targets, teacher)["kl"] for config in (plain, warm)
    )
    assert plain.temperature == 1.0 and not math.isclose(plain_kl.item(), warm_kl.item())
