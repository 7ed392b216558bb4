"""Batches larger than memory, with the losses of the whole batch.

A representation loss is not a sum over samples, so averaging the gradients of micro-batches would
change it. Instead: run every micro-batch without a graph, let the losses be computed once on all
outputs (of all processes), then run every micro-batch again and pass the outputs' gradients back
through it. What this cannot keep is a batch norm inside the model: it sees micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from srd.device import Precision
from srd.distributed import gradients
from srd.models.outputs import Output


class MicroBatches(nn.Module):
    """Runs a student on a share of a batch, `size` images at a time.

    Args:
        student: not wrapped for data-parallel training: its gradients are averaged here.
        size: images that fit in memory with their graph.
    """

    def __init__(self, student: nn.Module, size: int, precision: Precision) -> None:
        super().__init__()
        self.student, self.size, self.precision = student, size, precision
        self.absent: list[bool] = []  # which parts of its outputs the student leaves out

    def forward(self, images: Tensor) -> Output:
        """Images (B, 3, H, W) to the outputs of all; draws follow torch's seed and the part."""
        anchor = torch.zeros((), requires_grad=True)  # so that the outputs have a gradient
        parts = iter(_Recomputed.apply(anchor, images, torch.initial_seed(), self))
        values: list[Any] = [None if absent else next(parts) for absent in self.absent]
        return Output(*values)

    def first_run(self, images: Tensor, seed: int) -> tuple[Tensor, ...]:
        """The outputs, without a graph; running statistics move in the second run only."""
        buffers = [(buffer, buffer.clone()) for buffer in self.student.buffers()]
        parts = [self._run(part, seed + i) for i, part in enumerate(images.split(self.size))]
        for buffer, before in buffers:
            buffer.copy_(before)
        self.absent = [value is None for value in parts[0]]
        present = [[value for value in part if value is not None] for part in parts]
        return tuple(torch.cat(values) for values in zip(*present, strict=True))

    def second_run(self, images: Tensor, seed: int, of_outputs: Sequence[Tensor]) -> None:
        """The outputs' gradients into the student's parameters, averaged over processes."""
        parts = images.split(self.size)
        split = zip(*(output.split(self.size) for output in of_outputs), strict=True)
        for i, (part, part_gradients) in enumerate(zip(parts, split, strict=True)):
            outputs = [value for value in self._run(part, seed + i) if value is not None]
            last = i == len(parts) - 1
            with gradients.averaged(self.student.parameters()) if last else nullcontext():
                torch.autograd.backward(outputs, part_gradients)

    def _run(self, images: Tensor, seed: int) -> Output:
        torch.manual_seed(seed)  # both runs drop the same paths
        with self.precision.autocast():
            output: Output = self.student(images)
        return output


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, images: Tensor, seed: int, runs: MicroBatches
    ) -> tuple[Tensor, ...]:
        ctx.images, ctx.seed, ctx.runs = images, seed, runs
        return runs.first_run(images, seed)

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[None, ...]:
        with torch.enable_grad():
            ctx.runs.second_run(ctx.images, ctx.seed, of_outputs)
        return None, None, None, None


def in_parts(teach: Callable[[Tensor], Output], size: int) -> Callable[[Tensor], Output]:
    """`teach` on `size` images at a time."""

    def run(images: Tensor) -> Output:
        parts = [teach(part) for part in images.split(size)]
        columns: Iterable[Any] = zip(*parts, strict=True)
        values: list[Any] = [None if column[0] is None else torch.cat(column) for column in columns]
        return Output(*values)

    return run
