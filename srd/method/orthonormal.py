"""Projectors of orthonormal columns, or rows where they are wider than high.

P is the first k columns of Cayley's map (1 - A/2)^-1 (1 + A/2) of the skew-symmetric matrix A whose
free parameters X (n, k) stand below its diagonal in the first k columns: every value of them is an
orthonormal P. torch's own choice for oblong matrices, Householder's, is not: it keeps signs in the
diagonal of its parameters and cuts them to integers, so the first step with weight decay makes P zero.

torch's Cayley map solves n equations in n unknowns. A is zero beside its first k rows and columns, so
those are enough: with X's first k rows X1 and its others X2, M = X2^T X2 / 4 - (X1 - X1^T) / 2,

    P1 = (1 + M)^-1 (1 - M)        P2 = X2 (1 + P1) / 2

which costs 2 n k^2 operations instead of n^3, and gives the same P from the same parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization


class Orthonormal(nn.Module):
    """Free parameters (n, k), or (k, n), to an orthonormal matrix of that shape."""

    def forward(self, parameters: Tensor) -> Tensor:
        if parameters.shape[0] < parameters.shape[1]:
            transposed: Tensor = self(parameters.mT)
            return transposed.mT
        size = parameters.shape[1]
        first, others = parameters.tril().split([size, len(parameters) - size])
        one = torch.eye(size, dtype=parameters.dtype, device=parameters.device)
        m = others.mT @ others / 4 - (first - first.mT) / 2
        top = torch.linalg.solve(one + m, one - m)
        return torch.cat([top, others @ (one + top) / 2])


def orthonormal(student_dim: int, teacher_dim: int) -> nn.Linear:
    """A linear map without bias whose weight is orthonormal for all of its training."""
    linear = nn.Linear(student_dim, teacher_dim, bias=False)
    register_parametrization(linear, "weight", Orthonormal())
    return linear
