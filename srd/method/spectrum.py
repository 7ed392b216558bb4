"""What a projector has become: its singular values, effective rank, and input-output correlation.

Effective rank is the exponential of the entropy of the singular values as shares of their sum: O. Roy
and M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. The
paper looks at singular values in its figure 2 and at the correlation in figure 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def singular_values(weight: Tensor) -> list[float]:
    """Of a matrix (D_t, D_s), the largest first, in float64 on the CPU; [] if it is not finite."""
    matrix = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        return []
    values: list[float] = torch.linalg.svdvals(matrix).tolist()
    return values


def effective_rank(values: list[float]) -> float:
    """exp(-sum p log p), p = s / sum s: 1 for a single direction, n for n equal ones; 0 for zeros."""
    total = sum(values)
    if total == 0:
        return 0.0
    shares = [value / total for value in values if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


@torch.no_grad()
def correlation(inputs: Tensor, outputs: Tensor) -> float | None:
    """Mean of |Pearson's r| over all pairs of an input channel and an output channel.

    Channels without variance are left out. Of n samples that have nothing to do with each other
    it is about sqrt(2 / (pi n)), not 0.

    Shapes: (n, D_s) and (n, D_t). Returns None for less than two samples, or no channel left.
    """
    if len(inputs) < 2:
        return None
    one, other = (_standardised(values.double()) for values in (inputs, outputs))
    if one.shape[1] == 0 or other.shape[1] == 0:
        return None
    return float((one.T @ other).abs().mean())


def _standardised(values: Tensor) -> Tensor:
    """Channels (n, D) with mean 0 and length 1, those of no variance left out."""
    centred = values - values.mean(dim=0)
    lengths = centred.norm(dim=0)
    varied = lengths > 1e-12 * values.abs().amax(dim=0).clamp_min(1e-300) * len(values) ** 0.5
    return centred[:, varied] / lengths[varied]
