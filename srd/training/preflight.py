"""What is about to run, in a few lines before the first step: what one would want to know by then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from srd.config.fields import Config, Optim, Train
from srd.data.inputs import Inputs
from srd.device import Precision
from srd.distributed import processes
from srd.models.teacher import LoadedTeacher

MB = 1_000_000


def preflight(
    config: Config,
    inputs: Inputs,
    name: str,
    model: nn.Module,
    teacher: LoadedTeacher | None,
    precision: Precision,
) -> Iterator[str]:
    """The lines: data, student, teacher, updates, learning rate, disk.

    Args:
        name: of what is trained, and `model`: it.
    """
    parameters = sum(p.numel() for p in model.parameters())
    yield from inputs.notes
    yield (
        f"{name}, {parameters / 1e6:.2f} M parameters, {inputs.num_classes} classes; "
        f"{inputs.train_images} training and {inputs.val_images} validation images; "
        f"{precision.device}, {precision}, {processes.world_size()} process(es)"
    )
    if teacher is not None:
        digest = f", SHA-256 {teacher.sha256}" if teacher.sha256 else ""
        yield f"teacher {teacher.name} from {teacher.source}{digest}"
        yield from teacher.notes
    assert inputs.train_batches is not None
    yield from _updates(config.train, config.optim, inputs.train_images, len(inputs.train_batches))
    yield from _disk(Path(config.output), config.train, 4 * parameters)


def _updates(train: Train, optim: Optim, images: int, steps: int) -> Iterator[str]:
    left = images - steps * train.batch_size
    dropped = f" ({left} images left out of each)" if left else ""
    rate = optim.lr * train.batch_size / optim.lr_batch
    yield (
        f"{train.epochs} epochs of {steps} updates of {train.batch_size} images{dropped}; "
        f"learning rate {rate:.3g} ({optim.lr:g} for {optim.lr_batch} images), warm-up "
        f"{optim.warmup_epochs:g} epochs"
    )
    if optim.warmup_epochs > train.epochs / 2:
        share = "all" if optim.warmup_epochs >= train.epochs else "more than half"
        yield (
            f"warning: the warm-up takes {share} of the {train.epochs} epochs, so the learning rate "
            f"hardly arrives: --warmup-epochs {max(train.epochs // 20, 0)} is usual"
        )


def _disk(output: Path, train: Train, weights: int) -> Iterator[str]:
    """What the run leaves at most, of weights and two moments of an optimizer for each."""
    kept = train.keep_last + train.keep_best
    kept += train.epochs // train.keep_every if train.keep_every else 0
    needed = weights * (3 * kept + 1)
    place = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield f"disk: up to {needed / MB:,.0f} MB in {output}, {free / MB:,.0f} MB are free"
    if needed > free:
        yield (
            "warning: the disk will not do: keep fewer checkpoints (--set train.keep_last=1, "
            "train.keep_every=0)"
        )
