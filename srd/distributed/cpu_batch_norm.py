"""The global batch norm on the CPU as one differentiable function.

It computes, to the bit, what the formulas in `srd.distributed.batch_norm.normalize` do one after the
other. Those walk over fresh memory for every intermediate value, and summing float32 in float64 there
costs twenty sums in float32. Here a few samples at a time stay in the processor's cache.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from srd.distributed.reduce import reduce_sum

CHUNK = 1 << 17  # values at a time: half a megabyte


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
        shape = (-1, *[1] * (x.ndim - 2))
        parts = _parts(x)
        room = _room(x, parts)
        wide_room = torch.empty_like(room, dtype=wide)
        total = torch.zeros(x.shape[1], dtype=wide)
        for part in parts:
            values = x[part]
            total[part[1]] += _sum(_like(wide_room, values).copy_(values))
        mean = (reduce_sum(total) / count).to(x.dtype)
        across = mean.view(shape)
        total = torch.zeros(x.shape[1], dtype=wide)
        for part in parts:
            values = x[part]
            centred = torch.sub(values, across[part[1]], out=_like(room, values))
            total[part[1]] += _sum(_like(wide_room, values).copy_(centred.mul_(centred)))
        variance = (reduce_sum(total) / count).to(x.dtype)
        inverse = torch.rsqrt(variance + eps)
        scale = inverse if weight is None else inverse * weight
        scales, shifts = scale.view(shape), None if bias is None else bias.view(shape)
        out = torch.empty_like(x)
        for part in parts:
            here = torch.sub(x[part], across[part[1]], out=out[part]).mul_(scales[part[1]])
            if shifts is not None:
                here.add_(shifts[part[1]])
        ctx.save_for_backward(x, weight, mean, inverse, scale)
        ctx.count, ctx.has_bias = count, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        x, weight, mean, inverse, scale = ctx.saved_tensors
        shape = (-1, *[1] * (x.ndim - 2))
        wide = torch.promote_types(x.dtype, torch.float64)
        parts = _parts(x, grad)
        # Where their memory layouts differ, torch sums in the order of the gradient's.
        alike = x.stride() == grad.stride()
        room, across, scales = _room(x, parts), mean.view(shape), scale.view(shape)
        of_bias, of_scale, of_centred = (_Sum(x, parts) for _ in range(3))
        for part in parts:
            values = x[part]
            centred = torch.sub(values, across[part[1]], out=_like(room, values))
            of_bias.add(part, grad[part])
            of_scale.add(part, centred.mul_(grad[part]) if alike else grad[part] * centred)
        grad_bias, grad_scale = of_bias.total(), of_scale.total()
        grad_inverse = grad_scale if weight is None else grad_scale * weight
        grad_weight = None if weight is None else grad_scale * inverse
        grad_variance = -0.5 * grad_inverse * inverse.pow(3)
        of_squares = 2 * (reduce_sum(grad_variance.to(wide) / ctx.count)).to(x.dtype).view(shape)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias if ctx.has_bias else None, None, None
        grad_x = torch.empty_like(x) if alike else grad * scales
        for part in parts:
            values = x[part]
            centred = torch.sub(values, across[part[1]], out=_like(room, values))
            here = torch.mul(grad[part], scales[part[1]], out=grad_x[part])
            of_centred.add(part, here.add_(centred.mul_(of_squares[part[1]])))
        of_sum = reduce_sum(-of_centred.total().to(wide) / ctx.count).to(x.dtype).view(shape)
        return grad_x.add_(of_sum), grad_weight, grad_bias if ctx.has_bias else None, None, None


Part = tuple[slice, slice]  # of the samples, and of the channels


def _parts(*tensors: Tensor) -> list[Part]:
    """What to take at a time; all at once where a sum of sums would round in another way."""
    x = tensors[0]
    single = x.ndim == 2 or x.shape[1] == 1 or x[0, 0].numel() == 1
    if single or not all(tensor.is_contiguous() for tensor in tensors):
        return [(slice(0, len(x)), slice(0, x.shape[1]))]
    step = max(1, CHUNK // x[0].numel())
    samples = [slice(first, min(first + step, len(x))) for first in range(0, len(x), step)]
    return [(s, c) for s in samples for c in _slices(x.shape[1], CHUNK // x[0, 0].numel())]


def _slices(size: int, step: int) -> list[slice]:
    """Never of one alone, but where there is only one: several threads would share its sum."""
    firsts = [*range(0, max(1, size - 1), max(2, step)), size]
    return [slice(first, end) for first, end in pairwise(firsts)]


def _room(x: Tensor, parts: list[Part]) -> Tensor:
    """An empty tensor as large as the largest part."""
    return torch.empty_like(max((x[part] for part in parts), key=Tensor.numel))


def _like(room: Tensor, values: Tensor) -> Tensor:
    """As much of `room` as `values` take."""
    return room[: values.shape[0], : values.shape[1]]


class _Sum:
    """A sum over samples and positions, rounded as torch's sum of the whole tensor is."""

    def __init__(self, x: Tensor, parts: list[Part]) -> None:
        self._whole = len(parts) == 1
        self._rows = x.new_empty((1 if self._whole else len(x), x.shape[1]))

    def add(self, part: Part, values: Tensor) -> None:
        """Sum the `values` of `part` too."""
        if self._whole:
            self._rows[0] = _sum(values)
        else:
            self._rows[part] = values.flatten(2).sum(2)

    def total(self) -> Tensor:
        """(C,)"""
        total = self._rows[0]
        for row in self._rows[1:]:  # one after the other, as torch does
            total = total + row
        return total


def _sum(values: Tensor) -> Tensor:
    """(b, C, ...) to (C,)."""
    return values.sum(dim=[dim for dim in range(values.ndim) if dim != 1])
