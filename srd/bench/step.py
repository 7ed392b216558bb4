"""One update: ours, and the released loop's, with and without a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.bench.machine import matrix_rate, operations
from srd.bench.timing import Line, Sizes, in_turn
from srd.config.fields import Config, Distill
from srd.config.layers import Layer
from srd.config.reading import read_config
from srd.data.augment import Mix
from srd.data.loader import Batch, to_device
from srd.device import Precision, Readback, lacks_bfloat16
from srd.method.losses import NoSettings
from srd.models import timm_models
from srd.models.frozen import FrozenTeacher, Normalization
from srd.models.students import open_student
from srd.models.teacher import LoadedTeacher
from srd.training.build import make_task, prepare
from srd.training.optim import create_optimizer
from srd.training.task import DistillationTask
from srd.training.update import update

CLASSES = 1000
LONG = 1_000_000  # steps of a run
Step = Callable[[], object]


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """A whole step with the teacher, and the student's alone."""
    precision = Precision.choose("auto", device)
    rate = matrix_rate(device, precision.mixed or precision.dtype)
    config = configuration(sizes, device)
    batch = random_batch(sizes, device)
    kinds = {"": config}
    if device.type == "cuda":
        kinds[", compiled"] = replace(config, compile=True)
    elif not lacks_bfloat16(device):
        bf16 = replace(config.teacher, bf16=True)
        kinds[", the teacher in bfloat16"] = replace(config, teacher=bf16)
    for alone in (False, True):
        calls: dict[str, Step] = {}
        for kind, own in kinds.items():
            if alone and own.teacher.bf16:
                continue
            teacher = None if alone else random_teacher(sizes, precision, bf16=own.teacher.bf16)
            calls[kind] = our_step(own, teacher, precision, batch)
        plain = None if alone else random_teacher(sizes, Precision(device))
        calls["reference"] = released_step(sizes, plain, device, batch)
        rounds = {name: repeated(call, sizes.round_steps) for name, call in calls.items()}
        times = in_turn(rounds, seconds=sizes.seconds, device=device)
        reference = times.pop("reference")
        student = open_student(sizes.student, image_size=sizes.image_size)
        small = torch.zeros(2, 3, sizes.image_size, sizes.image_size)
        count = operations(student, small, training=True)
        if plain is not None:
            bare = random_teacher(sizes, Precision(torch.device("cpu")))
            count += operations(bare.model, small, training=False)
        what = "the student alone" if alone else f"taught by {sizes.teacher}"
        images = sizes.round_steps * sizes.batch_size
        for kind, ours in times.items():
            yield Line(
                name=f"step: {sizes.student}, {what}{kind}",
                ours=ours,
                reference=reference,
                floor=count / 2 * images / rate,
                items=images,
                note=f"{sizes.round_steps} step(s) a round, of {sizes.batch_size} images; reference: a "
                "plain loop as released; floor: its operations at the matrix rate; compiled: the "
                "student too, with --compile",
            )


def repeated(step: Step, count: int) -> Step:
    """So many steps, after which a GPU is waited for once."""

    def steps() -> None:
        for _ in range(count):
            step()

    return steps


def configuration(sizes: Sizes, device: torch.device) -> Config:
    """The paper's, with these sizes."""
    values: dict[str, Any] = {
        "device": device.type,
        "model": {"name": sizes.student, "image_size": sizes.image_size},
        "train": {"batch_size": sizes.batch_size},
    }
    return read_config([Layer("bench", values)])


def random_batch(sizes: Sizes, device: torch.device) -> Batch:
    """Images and classes as a loader hands them over."""
    draws = torch.Generator().manual_seed(0)
    shape = (sizes.batch_size, 3, sizes.image_size, sizes.image_size)
    images = torch.randn(shape, generator=draws)
    if device.type == "cuda":
        images = images.pin_memory()
    return Batch(images, torch.randint(CLASSES, (sizes.batch_size,), generator=draws), [])


def fresh(batch: Batch) -> Batch:
    """`batch` with images that may be mixed in place; those that go to a GPU are copied anyway."""
    return batch if batch.images.is_pinned() else batch._replace(images=batch.images.clone())


def random_teacher(sizes: Sizes, precision: Precision, *, bf16: bool = False) -> LoadedTeacher:
    """A teacher with random weights."""
    torch.manual_seed(0)
    usual = Normalization((0.5,) * 3, (0.5,) * 3)
    network = timm.create_model(sizes.teacher, num_classes=CLASSES)
    frozen = FrozenTeacher(network, timm_models.read, usual, usual, bf16=bf16)
    frozen.to(precision.device, precision.dtype)
    return LoadedTeacher(frozen, sizes.teacher, "random", None)


def our_step(
    config: Config, teacher: LoadedTeacher | None, precision: Precision, batch: Batch
) -> Step:
    """The step that `srd.training.loop` makes, from a batch in memory."""
    return stepping(our_task(config, teacher, precision), config, precision, batch)


def our_task(
    config: Config, teacher: LoadedTeacher | None, precision: Precision
) -> DistillationTask:
    """A student, and a teacher where there is one, as in a long run."""
    distill = config.distill if teacher else Distill(loss=NoSettings())
    task = make_task(config, "student", distill, CLASSES, teacher, precision)
    prepare(task, teacher, replace(config, distill=distill), precision, batches=LONG)
    return task


def stepping(task: DistillationTask, config: Config, precision: Precision, batch: Batch) -> Step:
    """Makes a task's updates, each of the same batch."""
    optimizer = create_optimizer(
        task.train(), config.optim, batch_size=len(batch.targets), device=precision.device
    )
    mix = Mix(config.augment, num_classes=CLASSES, seed=0)
    scaler = precision.scaler()

    settle = one_behind()

    def step() -> None:
        ready = mix(*to_device(fresh(batch), precision.device, precision.dtype), 0)
        losses = task.losses(ready, 0)
        terms, _ = update(
            losses["loss"],
            {name: value.detach() for name, value in losses.items()},
            optimizer=optimizer,
            scaler=scaler,
            clip_norm=config.optim.clip_norm,
            where="a benchmark",
        )
        settle(terms)

    return step


def one_behind() -> Callable[[Readback], None]:
    """Waits for what came of the step before, as a run does."""
    before: list[Readback] = []

    def settle(terms: Readback) -> None:
        before.append(terms)
        if len(before) > 1:
            before.pop(0).wait()

    return settle


def released_step(
    sizes: Sizes, teacher: LoadedTeacher | None, device: torch.device, batch: Batch
) -> Step:
    """A plain loop that computes what the released DeiT code does: fp16 with a scaler on a GPU."""
    torch.manual_seed(0)
    student = open_student(sizes.student, image_size=sizes.image_size).to(device).train()
    mix = Mix(configuration(sizes, device).augment, num_classes=CLASSES, seed=0)
    trained: list[nn.Module] = [student]
    network: Any = teacher.model.model if teacher else None
    if teacher is not None:
        with torch.no_grad():
            said = network.forward_features(batch.images[:2].to(device))
        width = said.shape[1]
        trained.append(nn.Linear(_width(student, sizes, device), width).to(device))
        norms = [nn.BatchNorm1d(width, affine=False).to(device) for _ in range(2)]
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-4, weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step() -> None:
        images = fresh(batch).images.to(device, non_blocking=True)
        images, targets = mix(images, batch.targets.to(device, non_blocking=True), 0)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            output = student(images)
            loss = _soft_loss(output.logits, targets)
            if teacher is None:
                second = output.distilled_logits
                loss = loss if second is None else (loss + _soft_loss(second, targets)) / 2
            else:
                with torch.no_grad():
                    features = network.forward_features(images)
                    logits = network.forward_head(features)
                soft = output.logits if output.distilled_logits is None else output.distilled_logits
                loss = loss + F.kl_div(
                    F.log_softmax(soft, 1), F.log_softmax(logits, 1),
                    reduction="batchmean", log_target=True,
                )  # fmt: skip
                s = norms[0](trained[1](output.features).float())
                t = norms[1](features.mean((2, 3)).float())
                correlation = (s * t).mean(0)
                loss = loss + torch.log((correlation - 1).abs().pow(4).sum() + 1e-5)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 15.0)
        scaler.step(optimizer)
        scaler.update()
        loss.item()

    return step


def _soft_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.sum(-targets * F.log_softmax(logits, dim=-1), dim=-1).mean()


def _width(student: nn.Module, sizes: Sizes, device: torch.device) -> int:
    images = torch.zeros(2, 3, sizes.image_size, sizes.image_size, device=device)
    with torch.no_grad():
        return student(images).features.shape[-1]
