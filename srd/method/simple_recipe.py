"""The method: a linear projector, normalised representations, and the LogSum distance.

Miles and Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation",
AAAI 2024 (arXiv 2303.11098). With s = BN(P z_s) and t = BN(z_t):

    elementwise   log( sum_bd |s_bd - t_bd|^alpha + log_eps )     the paper's LogSum, and the
                                                                  released ResNet code
    correlation   c_d = (1/B) sum_b s_bd t_bd                     the released DeiT code
                  log( sum_d |c_d - 1|^alpha + log_eps )

The sums over the global batch come from `srd.distributed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from srd.distributed import processes, reduce
from srd.method.loss import Loss, at_least_float32, check_features
from srd.strict import STRICT, NonNegative

Match = Literal["correlation", "elementwise"]

# match: (epsilon of the normalisation, epsilon inside the log), as released
RELEASED_EPSILONS: dict[str, tuple[float, float]] = {
    "correlation": (0.0, 1e-5),
    "elementwise": (1e-4, 0.0),
}


class BatchNormalize(nn.Module):
    """Batch normalisation without affine parameters whose epsilon may be 0.

    Training uses the (biased) statistics of the global batch and updates the running ones, as
    `nn.BatchNorm1d(dim, eps, affine=False)` does; evaluation uses the running ones. A channel
    whose variance is zero to working precision becomes zero, with zero gradient, instead of NaN.

    Args:
        dim: number of channels D.
        eps: added to the variance; 0 in the released DeiT code.
        momentum: of the running statistics.
        across_ranks: use the global batch (default) or this process's share of it.

    Shapes: (B, D) to (B, D), in float32 or float64.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self, dim: int, eps: float, momentum: float = 0.1, across_ranks: bool = True
    ) -> None:
        super().__init__()
        self.eps, self.momentum, self.across_ranks = eps, momentum, across_ranks
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def extra_repr(self) -> str:
        return f"{self.running_mean.numel()}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        return normalized([self], [x])[0]

    @torch.no_grad()
    def track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics towards a batch's, (D,) both."""
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased_variance.to(self.running_var.dtype), self.momentum)


def normalized(layers: Sequence[BatchNormalize], inputs: Sequence[Tensor]) -> list[Tensor]:
    """What each layer makes of its input, the statistics of all in the same messages.

    The layers are in the same mode; the inputs have as many rows and the same type.
    """
    if not layers[0].training:
        return [
            (x - layer.running_mean.to(x.dtype))
            * _inverse_std(layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype), layer.eps)
            for layer, x in zip(layers, inputs, strict=True)
        ]
    rows = inputs[0].shape[0]
    count = rows * (processes.world_size() if layers[0].across_ranks else 1)
    if count < 2:
        raise ValueError(
            "the representations of a single sample have no batch statistics: "
            "train with a batch of at least 2"
        )
    widths = [x.shape[1] for x in inputs]
    mean_here = torch.cat([x.sum(dim=0) for x in inputs]) / rows
    means = mean_here.split(widths)
    centred = [x - mean for x, mean in zip(inputs, means, strict=True)]
    squares = torch.cat([x.square().sum(dim=0) for x in centred])
    if count > rows:
        mean_of_all, squares = reduce.global_moments(mean_here, squares, rows)
        means = mean_of_all.split(widths)
        centred = [x - mean for x, mean in zip(inputs, means, strict=True)]
    variances = (squares / count).split(widths)
    out = []
    for layer, x, mean, variance in zip(layers, centred, means, variances, strict=True):
        layer.track(mean.detach(), variance.detach() * count / (count - 1))
        out.append(x * _inverse_std(mean, variance, layer.eps))
    return out


def _local(x: Tensor) -> Tensor:
    return x


def _inverse_std(mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """1 / sqrt(variance + eps), but 0 where the variance is only a rounding error of the mean."""
    if eps > 0:
        return torch.rsqrt(variance + eps)
    constant = variance <= (8 * torch.finfo(mean.dtype).eps * mean).square()
    safe = variance.masked_fill(constant, 1.0)
    return torch.rsqrt(safe).masked_fill(constant, 0.0)


@dataclass(config=STRICT)
class SimpleRecipeSettings:
    """Of `SimpleRecipeLoss`, by name."""

    name: Literal["srd"] = "srd"
    match: Match = "correlation"
    alpha: Annotated[float, Field(ge=1)] = 4.0
    bn_eps: NonNegative | None = None  # None: the released value for `match`
    log_eps: NonNegative | None = None


class SimpleRecipeLoss(Loss):
    """The representation loss, with its projector.

    Everything is computed in float32 (float64 for float64 inputs), outside autocast. Parameters
    and buffers carry the released names (`embed.*`, `bn_s.*`, `bn_t.*`).

    Args:
        student_dim: D_s, width of the student's representation.
        teacher_dim: D_t, width of the teacher's.
        match: `"correlation"` (released DeiT code) or `"elementwise"` (paper, released ResNet code).
        alpha: power of the LogSum distance.
        bn_eps: epsilon of both normalisations; None takes the released value for `match`.
        log_eps: added inside the log; None takes the released value for `match`.
        across_ranks: statistics and sums over the global batch (default) or each rank's share.

    Shapes: z_s (B, D_s) and z_t (B, D_t) to a scalar. The teacher's side receives no gradient.

    Raises:
        ValueError: widths, ranks or batch sizes that do not fit; in training a batch of one;
            settings out of range.
    """

    settings = SimpleRecipeSettings

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        match: Match = "correlation",
        alpha: float = 4.0,
        bn_eps: float | None = None,
        log_eps: float | None = None,
        across_ranks: bool = True,
    ) -> None:
        super().__init__()
        if match not in RELEASED_EPSILONS:
            raise ValueError(f"match must be one of {sorted(RELEASED_EPSILONS)}, not {match!r}")
        default_bn_eps, default_log_eps = RELEASED_EPSILONS[match]
        self.match, self.alpha = match, float(alpha)
        self.bn_eps = default_bn_eps if bn_eps is None else float(bn_eps)
        self.log_eps = default_log_eps if log_eps is None else float(log_eps)
        if not (self.alpha >= 1 and self.bn_eps >= 0 and self.log_eps >= 0):  # NaN included
            raise ValueError("alpha must be at least 1, bn_eps and log_eps at least 0")
        self.across_ranks = across_ranks
        self.embed = nn.Linear(student_dim, teacher_dim)
        self.bn_s = BatchNormalize(teacher_dim, self.bn_eps, across_ranks=across_ranks)
        self.bn_t = BatchNormalize(teacher_dim, self.bn_eps, across_ranks=across_ranks)

    @classmethod
    def deit(cls, student_dim: int, teacher_dim: int) -> SimpleRecipeLoss:
        """The loss of the released DeiT code: correlation, BN eps 0, log eps 1e-5."""
        return cls(student_dim, teacher_dim, match="correlation")

    @classmethod
    def resnet(cls, student_dim: int, teacher_dim: int) -> SimpleRecipeLoss:
        """The loss of the released ResNet code: elementwise, BN eps 1e-4, no log eps."""
        return cls(student_dim, teacher_dim, match="elementwise")

    def use_local_statistics(self) -> None:
        """From now on: statistics and sums over each rank's share of the batch."""
        self.across_ranks = self.bn_s.across_ranks = self.bn_t.across_ranks = False

    @property
    def projector(self) -> nn.Linear:
        """P, from the student's width to the teacher's (`embed` in the released weights)."""
        return self.embed

    def extra_repr(self) -> str:
        return f"match={self.match!r}, alpha={self.alpha}, log_eps={self.log_eps}"

    def aligned(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """BN(P z_s) and BN(z_t), (B, D_t) both, in float32 or better."""
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            weight, bias = self.projector.weight.to(z_s.dtype), self.projector.bias.to(z_s.dtype)
            s, t = normalized([self.bn_s, self.bn_t], [F.linear(z_s, weight, bias), z_t])
            return s, t

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        dims = (self.projector.in_features, self.projector.out_features)
        check_features(z_s, z_t, student_dim=dims[0], teacher_dim=dims[1])
        total = reduce.sum_for_all if self.across_ranks else _local
        with torch.autocast(z_s.device.type, enabled=False):
            s, t = self.aligned(z_s, z_t)
            if self.match == "correlation":
                count = s.shape[0] * (processes.world_size() if self.across_ranks else 1)
                correlation = total((s * t).sum(dim=0)) / count
                powers = (correlation - 1).abs().pow(self.alpha).sum()
            else:
                powers = total((s - t).abs().pow(self.alpha).sum())
            if self.log_eps == 0:  # identical representations: a floor instead of log(0)
                powers = powers.clamp_min(torch.finfo(powers.dtype).tiny)
            return torch.log(powers + self.log_eps)
