"""Sums and means over processes, differentiable where gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
