"""The global batch norm on the CPU as one differentiable function.

It computes, to the bit, what the formulas in `srd.distributed.batch_norm.normalize` do one after the
other. Those walk over fresh memory for every intermediate value, and summing float32 in float64 there
costs twenty sums in float32. Here a few samples at a time stay in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srd.distributed.reduce import reduce_sum

CHUNK = 1 << 18  # values at a time: about a megabyte


class CpuBatchNorm(torch.autograd.Function):
    """(x, weight, bias, eps, count) to (out, mean, biased variance), the latter two of all processes.

    `count` is the number of values of a channel in the global batch; `weight` and `bias` may be None.

    Shapes: x (B, C) or (B, C, ...) in float32 or float64; weight, bias, mean, variance (C,).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach()
        wide = torch.promote_types(x.dtype, torch.float64)
        channels = (-1, *[1] * (x.ndim - 2))
        parts = _parts(x)
        room, wide_room = torch.empty_like(x[parts[0]]), torch.empty_like(x[parts[0]], dtype=wide)
        total = torch.zeros(x.shape[1], dtype=wide)
        for part in parts:
            values = x[part]
            total += _sum(wide_room[: len(values)].copy_(values))
        mean = (reduce_sum(total) / count).to(x.dtype)
        across = mean.view(channels)
        total = torch.zeros(x.shape[1], dtype=wide)
        for part in parts:
            values = x[part]
            centred = torch.sub(values, across, out=room[: len(values)])
            total += _sum(wide_room[: len(values)].copy_(centred.mul_(centred)))
        variance = (reduce_sum(total) / count).to(x.dtype)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        out = torch.empty_like(x)
        for part in parts:
            here = torch.sub(x[part], across, out=out[part]).mul_(scale.view(channels))
            if bias is not None:
                here.add_(bias.view(channels))
        ctx.save_for_backward(x, weight, mean, inverse, scale)
        ctx.count, ctx.has_bias = count, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, weight, mean, inverse, scale = ctx.saved_tensors
        channels = (-1, *[1] * (x.ndim - 2))
        wide = torch.promote_types(x.dtype, torch.float64)
        parts = _parts(x, grad)
        # Where their memory layouts differ, torch sums in the order of the gradient's.
        alike = x.stride() == grad.stride()
        room = torch.empty_like(x[parts[0]])
        of_bias, of_scale = _Sum(parts), _Sum(parts)
        for part in parts:
            values = x[part]
            centred = torch.sub(values, mean.view(channels), out=room[: len(values)])
            of_bias.add(grad[part])
            of_scale.add(centred.mul_(grad[part]) if alike else grad[part] * centred)
        grad_bias, grad_scale = of_bias.total(), of_scale.total()
        grad_inverse = grad_scale if weight is None else grad_scale * weight
        grad_weight = None if weight is None else grad_scale * inverse
        grad_variance = -0.5 * grad_inverse * inverse.pow(3)
        of_squares = 2 * (reduce_sum(grad_variance.to(wide) / ctx.count)).to(x.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias if ctx.has_bias else None, None, None
        grad_x = torch.empty_like(x) if alike else grad * scale.view(channels)
        of_centred = _Sum(parts)
        for part in parts:
            values = x[part]
            centred = torch.sub(values, mean.view(channels), out=room[: len(values)])
            here = torch.mul(grad[part], scale.view(channels), out=grad_x[part])
            of_centred.add(here.add_(centred.mul_(of_squares.view(channels))))
        of_sum = reduce_sum(-of_centred.total().to(wide) / ctx.count).to(x.dtype)
        for part in parts:
            grad_x[part].add_(of_sum.view(channels))
        return grad_x, grad_weight, grad_bias if ctx.has_bias else None, None, None


def _parts(*tensors: Tensor) -> list[slice]:
    """Samples to take at a time; all at once where a sum of sums would round in another way."""
    x = tensors[0]
    size = len(x)
    if x.ndim > 2 and x[0, 0].numel() > 1 and all(tensor.is_contiguous() for tensor in tensors):
        size = max(1, CHUNK // x[0].numel())
    return [slice(first, first + size) for first in range(0, len(x), size)]


class _Sum:
    """A sum over samples and positions, rounded as torch's sum of the whole tensor is."""

    def __init__(self, parts: list[slice]) -> None:
        self._whole = len(parts) == 1
        self._terms: list[Tensor] = []

    def add(self, values: Tensor) -> None:
        """Sum `values`, (b, C, ...), too."""
        if self._whole:
            self._terms.append(_sum(values))
        else:
            self._terms.extend(values.flatten(2).sum(2))

    def total(self) -> Tensor:
        """(C,)"""
        total = self._terms[0]
        for term in self._terms[1:]:  # one after the other, as torch does
            total = total + term
        return total


def _sum(values: Tensor) -> Tensor:
    """(b, C, ...) to (C,)."""
    return values.sum(dim=[dim for dim in range(values.ndim) if dim != 1])
