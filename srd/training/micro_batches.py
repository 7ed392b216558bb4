"""Batches larger than memory, with the losses of the whole batch.

The representation loss is not a sum over samples, so averaging the gradients of micro-batches would
change it. Instead: run every micro-batch without a graph, compute the losses once on all outputs
(of all processes), then run every micro-batch again and pass the outputs' gradients back through it.
What this cannot keep is a batch norm inside the model: it sees micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deit.student import StudentOutput
from srd.device import Precision
from srd.distributed import reduce
from srd.models.outputs import TeacherOutput
from srd.models.teacher import FrozenTeacher
from srd.training.task import ClassifierTask, StudentTask, Task


class _Pass(NamedTuple):
    """What the second run needs: the images, the leaves that stand for the outputs, the seed."""

    images: Tensor
    leaves: tuple[Tensor, ...]
    seed: int


class MicroBatches:
    """Runs a task on a share of a batch, `size` images at a time.

    Args:
        task: on its device, not wrapped for data-parallel training: gradients are averaged here.
        size: images that fit in memory with their graph.
    """

    def __init__(
        self, task: Task, teacher: FrozenTeacher | None, size: int, precision: Precision
    ) -> None:
        self.task, self.teacher, self.size, self.precision = task, teacher, size, precision
        self._pass: _Pass | None = None

    def losses(self, images: Tensor, targets: Tensor, seed: int) -> dict[str, Tensor]:
        """The losses of the whole batch, differentiable down to the model's outputs."""
        buffers = [(buffer, buffer.clone()) for buffer in self.task.model.buffers()]
        with torch.no_grad():
            outputs = [self._run(part, seed + i) for i, part in enumerate(images.split(self.size))]
            for buffer, before in buffers:  # running statistics move in the second run only
                buffer.copy_(before)
            seen = self._teach(images)
        leaves = tuple(torch.cat(parts).requires_grad_() for parts in zip(*outputs, strict=True))
        self._pass = _Pass(images, leaves, seed)
        if isinstance(self.task, ClassifierTask):
            return self.task.losses(leaves[0], targets)
        return self.task.losses(StudentOutput(*leaves), targets, seen)

    def backward(self, loss: Tensor) -> None:
        """Gradients of (the scaled) `loss` into every parameter, averaged over processes."""
        assert self._pass is not None
        (images, leaves, seed), self._pass = self._pass, None
        loss.backward()
        grads = [leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for leaf in leaves]
        parts: Iterator[tuple[Tensor, ...]] = zip(*(g.split(self.size) for g in grads), strict=True)
        for i, (part, part_grads) in enumerate(zip(images.split(self.size), parts, strict=True)):
            torch.autograd.backward(self._run(part, seed + i), part_grads)
        reduce.average_gradients([p for p in self.task.parameters() if p.requires_grad])

    def _run(self, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        torch.manual_seed(seed)  # both runs drop the same paths
        with self.precision.autocast():
            out = self.task.model(images)
        return tuple(out) if isinstance(self.task, StudentTask) else (out,)

    def _teach(self, images: Tensor) -> TeacherOutput | None:
        if self.teacher is None:
            return None
        with self.precision.autocast():
            outputs = [self.teacher(part) for part in images.split(self.size)]
        return TeacherOutput(*(torch.cat(parts) for parts in zip(*outputs, strict=True)))
