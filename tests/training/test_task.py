"""Tasks: the losses are what the design says, all that is trained gets a gradient, nothing is lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from deit.student import ConvStemDeiT, read
from srd.config.fields import Distill
from srd.config.layers import Layer
from srd.config.reading import read_config
from srd.device import Precision
from srd.files.weights import split
from srd.method.loss import Loss
from srd.method.losses import LOSSES, create_loss
from srd.models.frozen import FrozenTeacher, Normalization
from srd.models.outputs import Output
from srd.models.students import Student, open_student
from srd.models.teacher import LoadedTeacher
from srd.strict import STRICT
from srd.training.task import DistillationTask

WIDTH, TEACHER_WIDTH, CLASSES, BATCH, SIZE = 24, 40, 5, 8, 32
CPU = torch.device("cpu")
PLAIN = Normalization((0.5,) * 3, (0.5,) * 3)
Teach = Callable[[Tensor], Output]


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Images and mixed targets."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw)
    return images, torch.rand(BATCH, CLASSES, generator=draw).softmax(dim=1)


def what_a_teacher_says(seed: int = 1) -> Output:
    draw = torch.Generator().manual_seed(1000 + seed)
    features = torch.randn(BATCH, TEACHER_WIDTH, generator=draw).relu()
    return Output(features, torch.randn(BATCH, CLASSES, generator=draw))


def distilling(name: str = "srd", match: str | None = None, **weights: float) -> Distill:
    loss = {"name": name} if match is None else {"name": name, "match": match}
    return read_config([Layer("", {"distill": {"loss": loss, **weights}})]).distill


def deit(seed: int = 0, *, reads_features: bool = True, drop_path: float = 0.0) -> Student:
    torch.manual_seed(seed)
    return Student(ConvStemDeiT(WIDTH, 3, CLASSES, SIZE, drop_path), read, reads_features)


def make_task(
    distill: Distill | None = None,
    student: Student | None = None,
    *,
    width: int = WIDTH,
    smoothing: float = 0.0,
    seed: int = 0,
    teach: Teach | None = lambda images: what_a_teacher_says(),
    precision: Precision | None = None,
) -> DistillationTask:
    """The task that a configuration describes, with a DeiT unless there is another student."""
    distill = distill or Distill()
    reads = LOSSES[distill.loss.name].reads
    student = student or deit(seed, reads_features=reads is not None)
    loss = None
    if reads is not None:
        loss = create_loss(distill.loss, student_dim=width, teacher_dim=TEACHER_WIDTH)
    return DistillationTask(
        student,
        loss,
        distill=distill,
        teach=teach if LOSSES[distill.loss.name].logits else None,
        smoothing=smoothing,
        precision=precision or Precision(CPU),
    )


def alone(student: Student | None = None, smoothing: float = 0.0) -> DistillationTask:
    return make_task(distilling("none"), student, smoothing=smoothing)


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
    task = make_task(distilling(match=match, temperature=2.0, **weights))
    (images, targets), teacher = batch(), what_a_teacher_says()
    out = task.student(images)
    losses = task.losses((images, targets), seed=0)
    assert list(losses) == ["loss", "ce", "kl", "repr"]
    ce = soft_cross_entropy(out.logits, targets)
    kl = divergence(out.distilled_logits, teacher.logits, 2.0)
    distance = log_sum(out.features, teacher.features, task.distillation_loss.projector, match)
    assert losses["ce"].item() == pytest.approx(ce.item(), rel=1e-5)
    assert losses["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert losses["repr"].item() == pytest.approx(distance.item(), rel=1e-5)
    total = 0.5 * ce + 3.0 * kl + 0.25 * distance
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_all_weights_are_1_by_default() -> None:
    losses = make_task().losses(batch(), seed=0)
    assert losses["loss"].item() == pytest.approx(
        sum(losses[name].item() for name in ("ce", "kl", "repr")), rel=1e-6
    )


def test_kd_has_no_representation_loss() -> None:
    task = make_task(distilling("kd"))
    (images, targets), teacher = batch(), what_a_teacher_says()
    losses = task.losses((images, targets), seed=0)
    assert list(losses) == ["loss", "ce", "kl"]
    assert losses["loss"].item() == pytest.approx((losses["ce"] + losses["kl"]).item(), rel=1e-6)
    assert losses["kl"].item() == pytest.approx(
        divergence(task.student(images).distilled_logits, teacher.logits, 1.0).item(), rel=1e-5
    )
    assert not any("distillation_loss" in name for name in task.state_dict())
    assert not any("distillation_loss" in name for name in task.checkpoint()["model"])


def test_alone_both_heads_learn_the_classes() -> None:
    task, (images, targets) = alone(), batch()
    out, losses = task.student(images), task.losses((images, targets), seed=0)
    assert list(losses) == ["loss", "ce"]
    both = [soft_cross_entropy(logits, targets) for logits in (out.logits, out.distilled_logits)]
    assert losses["loss"].item() == pytest.approx((sum(both) / 2).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["srd", "kd"])
@pytest.mark.parametrize("model", ["test_byobnet", "test_vit"])
def test_a_student_with_one_head_learns_all_with_it(name: str, model: str) -> None:
    torch.manual_seed(0)
    student = open_student(model, num_classes=CLASSES, image_size=SIZE)
    images, targets = batch()
    out, teacher = student(images), what_a_teacher_says()
    assert out.distilled_logits is None
    weights = {"ce_weight": 0.5, "kl_weight": 3.0, "temperature": 2.0}
    task = make_task(distilling(name, **weights), student, width=out.features.shape[1])
    losses = task.losses((images, targets), seed=0)
    ce = soft_cross_entropy(out.logits, targets).item()
    kl = divergence(out.logits, teacher.logits, 2.0).item()
    assert losses["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert losses["kl"].item() == pytest.approx(kl, rel=1e-5)
    rest = losses["repr"].item() if name == "srd" else 0.0
    assert losses["loss"].item() == pytest.approx(0.5 * ce + 3 * kl + rest, rel=1e-5)
    # Of the logits, the sum of both gradients comes back to the one head.
    losses["loss"].backward()
    assert all(p.grad is not None for p in student.parameters())


@pytest.mark.parametrize("reads", ["features", "tokens", "logits"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_loss_is_given_what_it_reads(
    reads: Any, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a student with two heads, the logits that learn from the teacher."""
    given: list[tuple[Tensor, Tensor]] = []

    @dataclass(config=STRICT)
    class Settings:
        name: Literal["mine"] = "mine"

    class Mine(Loss):
        settings = Settings

        def __init__(self, student_dim: int, teacher_dim: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
            given.append((z_s, z_t))
            return self.scale * z_s.mean()

    monkeypatch.setattr(Mine, "reads", reads)
    monkeypatch.setitem(LOSSES, "mine", Mine)
    student = (
        deit() if heads == 2 else open_student("test_vit", num_classes=CLASSES, image_size=SIZE)
    )
    teacher = what_a_teacher_says()._replace(tokens=torch.zeros(BATCH, 4, TEACHER_WIDTH))
    task = make_task(distilling("mine"), student, teach=lambda images: teacher)
    losses = task.losses(batch(), seed=0)
    ((z_s, z_t),) = given
    said = student(batch()[0])
    logits = said.logits if heads == 1 else said.distilled_logits
    assert torch.equal(z_s, logits if reads == "logits" else getattr(said, reads))
    assert z_t is getattr(teacher, reads) and list(losses) == ["loss", "ce", "kl", "repr"]


def test_class_indices_are_smoothed_and_mixed_targets_are_not() -> None:
    images, mixed = batch()
    indices = torch.arange(BATCH) % CLASSES
    smooth = torch.full((BATCH, CLASSES), 0.1 / CLASSES)
    smooth[torch.arange(BATCH), indices] += 0.9
    task = make_task(smoothing=0.1)
    out = task.student(images)
    for targets, meant in ((indices, smooth), (mixed, mixed)):
        ce = task.losses((images, targets), seed=0)["ce"].item()
        assert ce == pytest.approx(soft_cross_entropy(out.logits, meant).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "match"),
    [("srd", "correlation"), ("srd", "elementwise"), ("vkd", None), ("kd", None), ("none", None)],
)
def test_every_parameter_gets_a_gradient(name: str, match: str | None) -> None:
    task = make_task(distilling(name, match))
    task.losses(batch(), seed=0)["loss"].backward()
    names = dict(task.named_parameters())
    assert any(n.startswith("distillation_loss.") for n in names) == (name in ("srd", "vkd"))
    assert ("distillation_loss.embed.weight" in names) == (name == "srd")
    for n, parameter in names.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), n
        # A constant added to every projection is normalised away: only there is the gradient zero.
        if n != "distillation_loss.embed.bias":
            assert parameter.grad.abs().max() > 0, n


def test_parameters_are_the_students_and_the_losss() -> None:
    task = make_task()
    student = {f"student.model.{name}" for name, _ in task.model.named_parameters()}
    loss = {f"distillation_loss.embed.{name}" for name in ("weight", "bias")}
    assert {name for name, _ in task.named_parameters()} == student | loss


@pytest.mark.parametrize("loaded", [True, False])
def test_the_teacher_is_neither_trained_nor_saved(loaded: bool) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, TEACHER_WIDTH), nn.ReLU())
    head = nn.Linear(TEACHER_WIDTH, CLASSES)
    network.head = head

    def say(model: Any, images: Tensor) -> Output:
        features = model[:3](images)
        return Output(features, model.head(features))

    frozen = FrozenTeacher(network, say, PLAIN, PLAIN)
    teacher: Teach = LoadedTeacher(frozen, "mine", "here", None) if loaded else frozen
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task = make_task(teach=teacher)
    task.train()
    task.losses(batch(), seed=0)["loss"].backward()
    held = {id(value) for value in [*task.parameters(), *task.buffers()]}
    assert not held & {id(value) for value in [*network.parameters(), *network.buffers()]}
    assert not network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_projector_learns_from_the_representation_loss() -> None:
    task = make_task()
    projector = task.distillation_loss.projector
    task.student.requires_grad_(False)
    optimizer = torch.optim.SGD(projector.parameters(), lr=0.05)
    first = task.losses(batch(), seed=0)["repr"].item()
    for _ in range(50):
        optimizer.zero_grad()
        task.losses(batch(), seed=0)["repr"].backward()
        optimizer.step()
    assert task.losses(batch(), seed=0)["repr"].item() < first - 0.5


def test_losses_leave_autocast() -> None:
    task = make_task(precision=Precision(CPU, torch.bfloat16))
    seen: list[torch.dtype] = []
    task.student.register_forward_hook(lambda *call: seen.append(call[-1].logits.dtype))
    losses = task.losses(batch(), seed=0)
    assert seen == [torch.bfloat16]
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_in_double_precision_all_is() -> None:
    task = make_task(precision=Precision(CPU, dtype=torch.float64)).double()
    images, targets = batch()
    losses = task.losses((images.double(), targets.double()), seed=0)
    assert all(value.dtype == torch.float64 and not value.shape for value in losses.values())


def test_what_a_step_draws_comes_from_its_seed() -> None:
    task = make_task(student=deit(drop_path=0.5))
    first, again, other = (task.losses(batch(), seed)["loss"].item() for seed in (3, 3, 4))
    assert first == again != other


def test_weights_carry_the_released_names() -> None:
    task = make_task()
    student, weights = task.model.state_dict(), task.checkpoint()["model"]
    extra = {f"distillation_loss.embed.{name}" for name in ("weight", "bias")}
    for side in ("bn_s", "bn_t"):
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        extra |= {f"distillation_loss.{side}.{name}" for name in statistics}
    assert set(weights) == set(student) | extra
    assert weights["distillation_loss.embed.weight"].shape == (TEACHER_WIDTH, WIDTH)


def test_weights_come_back() -> None:
    task, other = make_task(seed=0), make_task(seed=1)
    task.losses(batch(), seed=0)  # moves statistics
    weights = task.checkpoint()["model"]
    other.load_checkpoint({"model": {name: value.clone() for name, value in weights.items()}})
    assert all(torch.equal(v, other.checkpoint()["model"][n]) for n, v in weights.items())
    assert torch.equal(
        task.losses(batch(2), seed=0)["loss"], other.losses(batch(2), seed=0)["loss"]
    )


def test_weights_are_loaded_strictly() -> None:
    task = make_task()
    for lost in ("distillation_loss.embed.bias", "head.weight"):
        weights = {name: v for name, v in task.checkpoint()["model"].items() if name != lost}
        with pytest.raises(RuntimeError, match=lost.removeprefix("distillation_loss.")):
            task.load_checkpoint({"model": weights})


def test_released_weights_are_split_into_student_and_projector() -> None:
    task = make_task()
    student, projector = split(task.checkpoint()["model"])
    assert set(student) == set(task.model.state_dict())
    names = {f"distillation_loss.{name}" for name in task.distillation_loss.state_dict()}
    assert set(projector) == names


def test_what_is_evaluated_is_the_student_alone() -> None:
    task = make_task()
    assert task.model is task.student.model and isinstance(task.model, ConvStemDeiT)
    task.share_out(None)
    assert task.model is task.student.model


def test_the_student_says_what_must_not_decay() -> None:
    task = make_task()
    kept = {name for name, _ in task.named_parameters()} & task.no_weight_decay()
    assert kept == {"student.model.pos_embed", "student.model.cls_token"}
    plain = Student(nn.Linear(2, CLASSES), lambda model, images, features=True: None)
    assert alone(plain).no_weight_decay() == set()


def test_a_scalar_of_the_loss_does_not_touch_the_teacher() -> None:
    features, logits, *_ = what_a_teacher_says()
    said = Output(features.requires_grad_(), logits.requires_grad_())
    make_task(teach=lambda images: said).losses(batch(), seed=0)["loss"].backward()
    assert features.grad is None and logits.grad is None


def test_a_classifier_learns_by_cross_entropy() -> None:
    torch.manual_seed(0)
    student = open_student(
        "test_byobnet", num_classes=CLASSES, image_size=SIZE, reads_features=False
    )
    task, (images, targets) = alone(student, smoothing=0.1), batch()
    task.eval()
    losses = task.losses((images, targets), seed=0)
    assert list(losses) == ["loss", "ce"] and torch.equal(losses["loss"], losses["ce"])
    expected = soft_cross_entropy(student.model(images), targets).item()
    assert losses["ce"].item() == pytest.approx(expected, rel=1e-5)
    losses["loss"].backward()
    assert all(p.grad is not None for p in task.parameters())
    weights = task.checkpoint()["model"]
    assert set(weights) == set(student.model.state_dict()) and task.model is student.model


def test_a_temperature_of_1_is_the_released_one() -> None:
    plain, warm = distilling(), distilling(temperature=4.0)
    plain_kl, warm_kl = (
        make_task(config).losses(batch(), seed=0)["kl"] for config in (plain, warm)
    )
    assert plain.temperature == 1.0 and not math.isclose(plain_kl.item(), warm_kl.item())
