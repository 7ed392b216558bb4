"""The global batch norm on the CPU as one differentiable function, of torch's own fused kernels.

Those know one process's batch. Here they take the statistics of every map by itself (one image's, of one
channel), which are put together in float64: whichever process holds an image, it adds the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from srd.distributed.processes import world_size
from srd.distributed.reduce import global_moments, reduce_sum


class CpuBatchNorm(torch.autograd.Function):
    """(x, weight, bias, eps) to (out, mean, biased variance), the latter two of all processes.

    `weight` and `bias` may be None. One message each way.

    Shapes: x (B, C) or (B, C, ...) in float32 or float64; weight, bias, mean, variance (C,).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.contiguous()  # of other layouts the kernels sum in float32, in parts for each thread
        mean, variance = _moments(x)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.has_bias = eps, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        kernel = torch.ops.aten.native_batch_norm_backward
        given = (grads[0].contiguous(), x, weight)
        inverse = torch.rsqrt(variance + ctx.eps)
        alone = world_size() == 1
        # To the kernel, statistics of several are constants: it scales the gradients, and sums them.
        saved: tuple[Any, ...] = (
            (None, None, mean, inverse, True) if alone else (mean, variance, None, None, False)
        )
        grad_x, grad_weight, grad_bias = kernel(*given, *saved, ctx.eps, [True] * 3)
        if not alone:
            of_scale, of_shift = reduce_sum(torch.stack([grad_weight, grad_bias]).double())
            share = inverse.double() / (x.numel() // x.shape[1] * world_size())
            if weight is not None:
                share = share * weight
            per_channel = (-1, *[1] * (x.ndim - 2))
            slope = (of_scale * share * inverse).to(x.dtype).view(per_channel)
            grad_x.sub_((of_shift * share).to(x.dtype).view(per_channel))
            grad_x.addcmul_(x - mean.view(per_channel), slope, value=-1)
        return (
            grad_x,
            None if weight is None else grad_weight,
            grad_bias if ctx.has_bias else None,
            None,
        )


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel in the global batch, both (C,), of a contiguous `x`."""
    maps = x.view(1, -1, x[0, 0].numel())
    shape = x.shape[:2]
    means, variances = (
        part.view(shape).double() for part in torch.batch_norm_update_stats(maps, None, None, 0.0)
    )
    mean = means.mean(dim=0)
    squares = maps.shape[2] * (variances + (means - mean).square()).sum(dim=0)
    rows = shape[0] * maps.shape[2]
    mean, squares = global_moments(mean, squares, rows)
    return mean.to(x.dtype), (squares / (rows * world_size())).to(x.dtype)
