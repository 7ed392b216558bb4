"""Sums and means over processes, differentiable where gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from srd.distributed.processes import world_size


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process the main one's buffers, such as running statistics of its own share."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class _GlobalSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def global_sum(x: Tensor) -> Tensor:
    """Sum `x` over all ranks, differentiably (any shape, same on every rank)."""
    return _GlobalSum.apply(x) if world_size() > 1 else x


class _GlobalMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, squares: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        means, parts = gather(torch.stack([mean, squares])[None]).unbind(1)  # (N, D) both
        whole = means.mean(dim=0)
        ctx.save_for_backward(mean - whole)
        ctx.rows = rows
        return whole, parts.sum(dim=0) + rows * (means - whole).square().sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        of_mean, of_squares = reduce_sum(torch.stack(grads))
        (away,) = ctx.saved_tensors
        return of_mean / world_size() + of_squares * (2 * ctx.rows) * away, of_squares, None


def global_moments(mean: Tensor, squares: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Means, and sums of squared deviations from them, over all ranks: one message each way.

    Shares are put together as Chan, Golub and LeVeque do, which loses no accuracy as squared sums would.

    Args:
        mean: of this rank's rows, (D,).
        squares: sum over this rank's rows of the squared deviations from that mean, (D,).
        rows: of this rank, the same number on all.
    """
    if world_size() == 1:
        return mean, squares
    moments: tuple[Tensor, Tensor] = _GlobalMoments.apply(mean, squares, rows)
    return moments


class _SumForAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return reduce_sum(x.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * world_size()


def sum_for_all(x: Tensor) -> Tensor:
    """`global_sum` of what every rank turns into the same loss, from the sum alone.

    Then the gradients that would be summed on the way back are all the same: nothing is sent.
    """
    return _SumForAll.apply(x) if world_size() > 1 else x


@torch.no_grad()
def reduce_mean(x: Tensor) -> Tensor:
    """Mean of `x` over ranks, for logging only: no gradient passes."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, for counting only: no gradient passes."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """The rows of all ranks, one rank's after another's: (B, ...) each, B the same, to (N B, ...)."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
