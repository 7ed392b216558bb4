"""What a projector keeps: its singular values, and how many of them count."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_rank(weight: Tensor) -> float:
    """exp of the entropy of the singular values' shares, from 1 to min(D_s, D_t).

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.

    Shapes: weight (D_t, D_s).
    """
    values = torch.linalg.svdvals(weight.detach().double().cpu())
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))
