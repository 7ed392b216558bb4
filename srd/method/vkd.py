"""VkD: an orthonormal projector, and the teacher's features normalised.

Roy Miles, Ismail Elezi, Jiankang Deng, "VkD: Improving Knowledge Distillation using Orthogonal
Projections", CVPR 2024 (arXiv 2403.06213). As their code for image classification has it
(github.com/roymiles/vkd, `engine.py` and `train.py`):

    s = P z_s                           P without bias, orthonormal for all of the training
    t = (z_t - mean) / sqrt(var + 1e-5)     over the channels of each sample: layer normalisation
    loss = mean_bd smooth_l1(s_bd - t_bd)   x^2 / (2 beta) below beta = 1, |x| - beta / 2 above

A student narrower than its teacher keeps all inner products (P^T P = 1); a wider one is projected
onto D_t of its directions (P P^T = 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from srd.method.loss import Loss, at_least_float32, check_features
from srd.method.orthonormal import orthonormal
from srd.strict import STRICT, NonNegative, Positive


@dataclass(config=STRICT)
class VkDSettings:
    """Of `VkDLoss`, by name."""

    name: Literal["vkd"] = "vkd"
    beta: NonNegative = 1.0
    norm_eps: Positive = 1e-5


class VkDLoss(Loss):
    """VkD's loss, with its projector.

    P is `srd.method.orthonormal`'s, whose free parameters (D_t, D_s) are all that a checkpoint holds.

    Args:
        student_dim: D_s, width of the student's representation.
        teacher_dim: D_t, width of the teacher's.
        beta: where smooth L1 turns from a square to a line; 0 for L1.
        norm_eps: added to the variance of the layer normalisation.

    Shapes: z_s (B, D_s) and z_t (B, D_t) to a scalar.

    Raises:
        ValueError: widths or batch sizes that do not fit; settings out of range.
    """

    settings = VkDSettings

    def __init__(
        self, student_dim: int, teacher_dim: int, beta: float = 1.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        if not (beta >= 0 and norm_eps > 0):  # NaN included
            raise ValueError("beta must be at least 0, norm_eps above 0")
        self.beta, self.norm_eps = float(beta), float(norm_eps)
        self.projector = orthonormal(student_dim, teacher_dim)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, norm_eps={self.norm_eps}"

    def aligned(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """P z_s and the normalised z_t, (B, D_t) both, in float32 or better."""
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            s = F.linear(z_s, self.projector.weight.to(z_s.dtype))
            return s, F.layer_norm(z_t, z_t.shape[1:], eps=self.norm_eps)

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        dims = (self.projector.in_features, self.projector.out_features)
        check_features(z_s, z_t, student_dim=dims[0], teacher_dim=dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            s, t = self.aligned(z_s, z_t)
            return F.smooth_l1_loss(s, t, beta=self.beta)
