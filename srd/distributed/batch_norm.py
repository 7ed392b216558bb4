"""Batch norms whose statistics are those of the global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from srd.distributed.processes import world_size
from srd.distributed.reduce import global_sum


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of the global batch.

    Unlike `nn.SyncBatchNorm` it also works on the CPU (gloo). There it sums in float64, alone too:
    as long as the weights are the same, any number of processes computes the same bits, and no
    rounding puts a value on the other side of a ReLU. Alone on a GPU it *is* `nn.BatchNorm2d`.
    State-dict names are those of `nn.BatchNorm2d`. Shapes: (B, C, H, W) to (B, C, H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or (world_size() == 1 and x.device.type != "cpu"):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            work = x.to(torch.promote_types(torch.float32, x.dtype))
            count = work.numel() // work.shape[1] * world_size()
            wide = torch.float64 if x.device.type == "cpu" else work.dtype
            mean = (global_sum(work.sum(dim=(0, 2, 3), dtype=wide)) / count).to(work.dtype)
            centred = work - mean[:, None, None]
            squares = centred.square().sum(dim=(0, 2, 3), dtype=wide)
            variance = (global_sum(squares) / count).to(work.dtype)
            self._track(mean.detach(), variance.detach(), count)
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                scale = scale * self.weight
            out = centred * scale[:, None, None]
            if self.bias is not None:
                out = out + self.bias[:, None, None]
        return out.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # a cumulative average, as in nn.BatchNorm2d
            momentum = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * count / max(count - 1, 1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def use_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every `nn.BatchNorm2d` inside `module` by `GlobalBatchNorm2d`, sharing its tensors."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            twin = GlobalBatchNorm2d(
                child.num_features,
                child.eps,
                child.momentum,
                child.affine,
                child.track_running_stats,
            )
            twin._parameters, twin._buffers = child._parameters, child._buffers
            twin.train(child.training)
            setattr(module, name, twin)
        else:
            use_global_batch_norm(child)
    return module
