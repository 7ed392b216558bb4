"""Batch norms whose statistics are those of the global batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from srd.distributed.cpu_batch_norm import CpuBatchNorm
from srd.distributed.processes import world_size
from srd.distributed.reduce import global_sum
from srd.errors import UserError


def normalize(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What `layer` computes in training, with the statistics of the global batch.

    On the CPU the statistics of maps are put together in float64: as long as the weights are the same,
    any number of processes computes the same bits, and no rounding puts a value on the other side of a
    ReLU. GPUs have the kernels of `nn.SyncBatchNorm`. Both send one message each way. The formulas serve
    compilers.

    Shapes: (B, C) or (B, C, ...) to the same.
    """
    layer._check_input_dim(x)
    if x.device.type == "cuda" and not torch.compiler.is_compiling():
        return _by_sync_kernels(layer, x)
    with torch.autocast(x.device.type, enabled=False):
        work = x.to(torch.promote_types(torch.float32, x.dtype))
        count = work.numel() // work.shape[1] * world_size()
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            affine = (p if p is None else p.to(work.dtype) for p in (layer.weight, layer.bias))
            out, mean, variance = CpuBatchNorm.apply(work, *affine, layer.eps)
            _track(layer, mean, variance, count)
            return out.to(x.dtype)
        wide = torch.float64 if x.device.type == "cpu" else work.dtype
        others = [dim for dim in range(x.ndim) if dim != 1]
        channels = (-1, *[1] * (x.ndim - 2))
        mean = (global_sum(work.sum(dim=others, dtype=wide)) / count).to(work.dtype)
        centred = work - mean.view(channels)
        squares = centred.square().sum(dim=others, dtype=wide)
        variance = (global_sum(squares) / count).to(work.dtype)
        _track(layer, mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + layer.eps)
        if layer.weight is not None:
            scale = scale * layer.weight
        out = centred * scale.view(channels)
        if layer.bias is not None:
            out = out + layer.bias.view(channels)
    return out.to(x.dtype)


def _by_sync_kernels(layer: _BatchNorm, x: Tensor) -> Tensor:
    momentum = layer.momentum or 0.0
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:  # a cumulative average, as in torch
            momentum = 1.0 / float(layer.num_batches_tracked)
    out: Tensor = SyncBatchNorm.apply(
        x,
        layer.weight,
        layer.bias,
        layer.running_mean,
        layer.running_var,
        layer.eps,
        momentum,
        dist.group.WORLD,
        world_size(),
    )
    return out


def _track(layer: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if layer.running_mean is None or layer.running_var is None:
        return
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    momentum = layer.momentum
    if momentum is None:  # a cumulative average, as in torch
        momentum = 1.0 / float(layer.num_batches_tracked)
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
    unbiased = variance * count / max(count - 1, 1)
    layer.running_var.lerp_(unbiased.to(layer.running_var.dtype), momentum)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the global batch.

    Unlike `nn.SyncBatchNorm` it also works on the CPU (gloo), where it computes the same bits
    alone. Alone on a GPU it *is* `nn.BatchNorm2d`. Shapes: (B, C, H, W) to (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (world_size() == 1 and x.device.type != "cpu"):
            return super().forward(x)
        return normalize(self, x)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` with the statistics of the global batch; alone it *is* `nn.BatchNorm1d`.

    Shapes: (B, C) or (B, C, L) to the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        return normalize(self, x)


class GlobalBatchNormAct2d(BatchNormAct2d):
    """timm's batch norm with dropout and activation, with the statistics of the global batch.

    Alone it *is* timm's. Shapes: (B, C, H, W) to (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        return self.act(self.drop(normalize(self, x)))


GLOBAL: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GlobalBatchNorm1d,
    nn.BatchNorm2d: GlobalBatchNorm2d,
    BatchNormAct2d: GlobalBatchNormAct2d,
}
GLOBAL_ALREADY = (*GLOBAL.values(), nn.SyncBatchNorm)


def use_global_batch_norm(network: nn.Module) -> nn.Module:
    """Give every batch norm in `network` the statistics of the global batch.

    Each layer stays the object that it was, with its tensors, hooks and state-dict names.

    Raises:
        UserError: with several processes, where a layer with batch statistics is of another kind.
    """
    for name, layer in network.named_modules():
        if type(layer) in GLOBAL:
            layer.__class__ = GLOBAL[type(layer)]
        elif world_size() > 1 and _has_batch_statistics(layer):
            raise UserError(
                f"{name} of {type(network).__name__} is a {type(layer).__name__}, whose statistics "
                "would be those of each process's share of the batch: train with one process, or "
                "accept that with --set train.global_statistics=false"
            )
    return network


def _has_batch_statistics(layer: nn.Module) -> bool:
    if isinstance(layer, GLOBAL_ALREADY):
        return False
    return isinstance(layer, _BatchNorm) or "running_var" in dict(
        layer.named_buffers(recurse=False)
    )
