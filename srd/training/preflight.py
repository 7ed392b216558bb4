"""What is about to run, in a few lines before the first step: what one would want to know by then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from srd.config.fields import Optim, Plan
from srd.config.presets import warmup
from srd.data.inputs import Inputs
from srd.device import Precision
from srd.distributed import processes
from srd.models.recorded import RecordedTeacher
from srd.models.teacher import LoadedTeacher

MB = 1_000_000


def preflight(
    plan: Plan,
    optim: Optim,
    output: str,
    *,
    inputs: Inputs,
    name: str,
    model: nn.Module,
    teacher: LoadedTeacher | RecordedTeacher | None,
    precision: Precision,
    notes: Sequence[str] = (),
    memory: str | None = None,
) -> Iterator[str]:
    """The lines: data, student, teacher, updates, learning rate, disk.

    Args:
        output: the folder that the run's own is made in.
        name: of what is trained, and `model`: it.
        notes: how the configuration came about.
        memory: what is needed and what is there.
    """
    parameters = sum(p.numel() for p in model.parameters())
    yield from inputs.notes
    classes = f"{inputs.num_classes} classes" if inputs.num_classes else "no labels"
    yield (
        f"{name}, {parameters / 1e6:.2f} M parameters, {classes}; "
        f"{inputs.train_images} training and {inputs.val_images} validation images; "
        f"{precision.device}, {precision}, {processes.world_size()} process(es)"
    )
    if teacher is not None:
        digest = f", SHA-256 {teacher.sha256}" if teacher.sha256 else ""
        yield f"teacher {teacher.name} from {teacher.source}{digest}"
        yield from teacher.notes
    assert inputs.train_batches is not None
    yield from notes
    yield from _updates(plan, optim, inputs.train_images, len(inputs.train_batches))
    if memory:
        yield memory
    yield from _disk(Path(output).expanduser(), plan, 4 * parameters)


def _updates(plan: Plan, optim: Optim, images: int, steps: int) -> Iterator[str]:
    left = images - steps * plan.batch_size
    dropped = f" ({left} images left out of each)" if left else ""
    rate = optim.lr * plan.batch_size / optim.lr_batch
    yield (
        f"{plan.epochs} epochs of {steps} updates of {plan.batch_size} images{dropped}; "
        f"learning rate {rate:.3g} ({optim.lr:g} for {optim.lr_batch} images), warm-up "
        f"{optim.warmup_epochs:g} epochs"
    )
    if optim.warmup_epochs > plan.epochs / 2:
        yield (
            f"warning: the warm-up takes more than half of the {plan.epochs} epochs, so the learning "
            f"rate hardly arrives: --warmup-epochs {warmup(plan.epochs):g} is usual"
        )


def _disk(output: Path, plan: Plan, weights: int) -> Iterator[str]:
    """What the run leaves at most, of weights and two moments of an optimizer for each."""
    kept = plan.keep_last + plan.keep_best
    kept += plan.epochs // plan.keep_every if plan.keep_every else 0
    needed = weights * (3 * kept + 1)
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield f"disk: up to {needed / MB:,.0f} MB in {output}, {free / MB:,.0f} MB are free"
    if needed > free:
        yield (
            "warning: the disk will not do: keep fewer checkpoints (train.keep_last, "
            "train.keep_every), or set --output to another disk"
        )
