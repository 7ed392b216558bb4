"""Accuracy: every image once, counted exactly, on any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.compiled import uncompiled
from srd.data.guard import check_targets
from srd.data.inputs import Inputs
from srd.data.loader import Batch, BrokenFiles, to_device
from srd.device import Precision
from srd.distributed import processes, reduce
from srd.errors import UserError
from srd.evaluation.predictions import Recorder
from srd.run.log import RunLog


class EvaluationStopped(Exception):
    """A signal came, to this process or to another, and the rest was not measured."""


class Measured(Protocol):
    """What an evaluation says of a model."""

    @property
    def score(self) -> float:
        """What the best epoch has most of, from 0 to 100."""
        ...

    def row(self) -> dict[str, float | int]:
        """The measured numbers by name."""
        ...

    def best(self, score: float) -> dict[str, float]:
        """The best epoch's score by the name that `result.json` gives it."""
        ...

    def told(self, score: float) -> str:
        """This, and the best epoch's score, for people."""
        ...


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in percent, mean cross-entropy, the images counted, and the speed.

    `agreement`: with the teacher, in percent of the images that it was measured on; None: not known.
    """

    acc1: float
    acc5: float
    loss: float
    images: int
    images_per_second: float
    agreement: float | None = None

    @property
    def score(self) -> float:
        """Top-1."""
        return self.acc1

    def best(self, score: float) -> dict[str, float]:
        """The best epoch's top-1."""
        return {"best_acc1": score}

    def told(self, score: float) -> str:
        """For the closing line."""
        return f"acc1 {self.acc1:.2f}, best {score:.2f}"

    def row(self) -> dict[str, float | int]:
        """The measured numbers, without the speed."""
        row = {"acc1": self.acc1, "acc5": self.acc5, "loss": self.loss, "images": self.images}
        return row if self.agreement is None else {**row, "agreement": self.agreement}

    def __str__(self) -> str:
        return (
            f"acc1 {self.acc1:.2f}  acc5 {self.acc5:.2f}  loss {self.loss:.4f}  on {self.images} images "
            f"({self.images_per_second:.0f} images/s)"
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode inside, in its old mode outside."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@uncompiled()
@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    precision: Precision,
    broken: BrokenFiles,
    progress: Callable[[int], None] = lambda images: None,
    stop: Callable[[], bool] = lambda: False,
    recorder: Recorder | None = None,
) -> Accuracy:
    """Measure `predict`, which maps images (B, 3, H, W) to logits (B, C).

    Counts are kept as integers on the device and summed over ranks at the end, so the accuracy
    does not depend on the batch size or the number of processes. With fewer than five classes
    acc5 counts all of them. Where `stop` becomes true on one process, all learn of it at the end.

    Args:
        recorder: takes down what is said of each image.

    Raises:
        UserError: a file cannot be read (and skipping is off), or there was nothing to measure.
        EvaluationStopped: `stop` said so, here or on another process.
    """
    device = precision.device
    sums = torch.zeros(5, dtype=torch.float64, device=device)  # correct 1, 5, loss, images, stops
    start = time.perf_counter()
    for batch in batches:
        if stop():
            sums[4] += 1
            break
        broken.check(batch)
        if len(batch.targets) == 0:
            continue
        images, targets = to_device(batch, device, precision.dtype)
        with precision.autocast():
            logits = predict(images)
        check_targets(batch.targets, logits.shape[1])
        logits = logits.float() if logits.dtype != torch.float64 else logits
        _, ranked = logits.topk(min(5, logits.shape[1]), dim=1)
        hits = ranked == targets[:, None]
        sums[0] += hits[:, 0].sum()
        sums[1] += hits.any(dim=1).sum()
        sums[2] += F.cross_entropy(logits, targets, reduction="sum").double()
        sums[3] += len(targets)
        if recorder is not None and batch.keys is not None:
            recorder.add(batch.keys[:, 1], targets, logits)
        progress(len(targets))
    correct1, correct5, loss, images_seen, stops = reduce.reduce_sum(sums).tolist()
    if stops:
        raise EvaluationStopped
    if images_seen == 0:
        raise UserError("no image could be evaluated")
    return Accuracy(
        acc1=100 * correct1 / images_seen,
        acc5=100 * correct5 / images_seen,
        loss=loss / images_seen,
        images=int(images_seen),
        images_per_second=images_seen / (time.perf_counter() - start),
    )


def measure(
    predict: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    *,
    images: int,
    precision: Precision,
    log: RunLog,
    broken: BrokenFiles,
    label: str = "evaluating",
    stop: Callable[[], bool] = lambda: False,
    recorder: Recorder | None = None,
) -> Accuracy:
    """`evaluate` with a progress bar of `images`, and a word on files that were skipped."""
    skipped = len(broken.names)
    with log.bar(label, images) as bar:
        accuracy = evaluate(
            predict,
            loader,
            precision,
            broken,
            lambda count: bar.advance(count * processes.world_size()),
            stop,
            recorder,
        )
    if (now := len(broken.names)) > skipped:
        log.info(f"skipped {now - skipped} files that could not be read")
    return accuracy


def measure_on(
    inputs: Inputs,
    predict: Callable[[Tensor], Tensor],
    precision: Precision,
    log: RunLog,
    label: str,
    stop: Callable[[], bool] = lambda: False,
    recorder: Recorder | None = None,
) -> Accuracy:
    """`measure` on the validation images of `inputs`."""
    return measure(
        predict,
        inputs.val,
        images=inputs.val_images,
        precision=precision,
        log=log,
        broken=inputs.broken,
        label=label,
        stop=stop,
        recorder=recorder,
    )
