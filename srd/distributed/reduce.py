"""Sums and means over processes, differentiable where gradients pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from srd.distributed.processes import world_size


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average `.grad` over ranks, in one message, for gradients that were accumulated by hand."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


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


@torch.no_grad()
def reduce_mean(x: Tensor) -> Tensor:
    """Mean of `x` over ranks, for logging only: no gradient passes."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / world_size()


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """All ranks' `x` (n, ...), of the same shape on each, one after the other."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


@torch.no_grad()
def reduce_sum(x: Tensor) -> Tensor:
    """Sum of `x` over ranks, for counting only: no gradient passes."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total
