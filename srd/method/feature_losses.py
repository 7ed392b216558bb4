"""Losses between features or feature maps: FitNet's, attention transfer, ICKD.

With F (B, D, H, W) a feature map and z (B, D) its mean over positions:

    fitnet  weight mean_bd (P z_s - z_t)^2
            Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, with a linear
            regressor of pooled features in the place of a convolution of hint layers
    at      weight mean_bn (a_s - a_t)^2,   a = v / |v|,   v_n = mean_d |F_dn|^power, n a position
            Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2
    ickd    weight mean_b (1 / D_t) sum_ij (g_s - g_t)^2,  g the rows of F F^T (D, D) over their lengths
            Liu et al., "Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge
            Distillation", ICCV 2021, equations 2 to 4; F_s first through a 1x1 convolution to D_t

The weights are those of the authors (`fitnet`: of Tian et al.'s comparison, ICLR 2020).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from srd.method.loss import Loss, at_least_float32, check_features, check_maps
from srd.strict import MOST_FLOAT, STRICT, NonNegative

SHORT = 1e-12  # torch's for lengths that are divided by


@dataclass(config=STRICT)
class FitNetSettings:
    """Of `FitNet`, by name."""

    name: Literal["fitnet"] = "fitnet"
    weight: NonNegative = 100.0


class FitNet(Loss):
    """Squared distance of linearly projected features.

    Args:
        student_dim: D_s, width of the student's representation.
        teacher_dim: D_t, width of the teacher's.
        weight: of the mean square.

    Shapes: z_s (B, D_s) and z_t (B, D_t) to a scalar.
    """

    settings = FitNetSettings

    def __init__(self, student_dim: int, teacher_dim: int, weight: float = 100.0) -> None:
        super().__init__()
        self.weight, self.projector = weight, nn.Linear(student_dim, teacher_dim)

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        dims = (self.projector.in_features, self.projector.out_features)
        check_features(z_s, z_t, student_dim=dims[0], teacher_dim=dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            weight, bias = self.projector.weight.to(z_s.dtype), self.projector.bias.to(z_s.dtype)
            return self.weight * F.mse_loss(F.linear(z_s, weight, bias), z_t)


@dataclass(config=STRICT)
class AttentionSettings:
    """Of `AttentionTransfer`, by name."""

    name: Literal["at"] = "at"
    weight: NonNegative = 1000.0
    power: Annotated[float, Field(ge=1, le=MOST_FLOAT)] = 2.0


class AttentionTransfer(Loss):
    """Squared distance of attention maps: where in the image the channels are large.

    Of maps of different heights or widths, the larger is averaged down to the smaller, as Tian et al.
    do it.

    Args:
        student_dim, teacher_dim: D_s and D_t, the channels.
        weight: of the mean square.
        power: of the absolute values.

    Shapes: z_s (B, D_s, H, W) and z_t (B, D_t, H', W') to a scalar.
    """

    reads, positions, settings = "maps", 2, AttentionSettings

    def __init__(
        self, student_dim: int, teacher_dim: int, weight: float = 1000.0, power: float = 2.0
    ) -> None:
        super().__init__()
        self.dims, self.weight, self.power = (student_dim, teacher_dim), weight, power

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        check_maps(z_s, z_t, student_dim=self.dims[0], teacher_dim=self.dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            maps = same_size(*at_least_float32(z_s, z_t.detach()))
            a_s, a_t = (F.normalize(m.abs().pow(self.power).mean(dim=1).flatten(1)) for m in maps)
            return self.weight * F.mse_loss(a_s, a_t)


@dataclass(config=STRICT)
class ICKDSettings:
    """Of `ICKD`, by name."""

    name: Literal["ickd"] = "ickd"
    weight: NonNegative = 2.5


class ICKD(Loss):
    """Squared distance of the correlations between channels, image by image.

    The maps may differ in height and width: positions are summed over.

    Args:
        student_dim, teacher_dim: D_s and D_t, the channels.
        weight: of the mean over images.

    Shapes: z_s (B, D_s, H, W) and z_t (B, D_t, H', W') to a scalar.
    """

    reads, settings = "maps", ICKDSettings

    def __init__(self, student_dim: int, teacher_dim: int, weight: float = 2.5) -> None:
        super().__init__()
        self.weight, self.projector = weight, nn.Linear(student_dim, teacher_dim)

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        dims = (self.projector.in_features, self.projector.out_features)
        check_maps(z_s, z_t, student_dim=dims[0], teacher_dim=dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            weight, bias = self.projector.weight.to(z_s.dtype), self.projector.bias.to(z_s.dtype)
            projected = F.linear(z_s.flatten(2).transpose(1, 2), weight, bias).transpose(1, 2)
            distances = correlation_distances(projected, z_t.flatten(2))
            return self.weight * distances.sum() / (len(z_s) * dims[1])


def correlation_distances(a: Tensor, b: Tensor) -> Tensor:
    """sum_j (g_ij - h_ij)^2 with g and h the rows of a a^T and of b b^T (D, D) over their lengths.

    Neither matrix is made: of rows of length 1 it is 2 - 2 g_i . h_i, and a product of two rows is
    a_i (a^T b) b_i. A row shorter than `SHORT`, of a channel that is 0 everywhere, is 0.

    Shapes: (B, D, N), (B, D, M) to (B, D).
    """
    products = ((a @ (a.transpose(1, 2) @ b)) * b).sum(dim=2)
    squares = torch.stack([((x @ (x.transpose(1, 2) @ x)) * x).sum(dim=2) for x in (a, b)])
    there = squares > SHORT**2
    inverse = torch.where(there, squares.clamp_min(SHORT**2).rsqrt(), 0.0)
    return there.sum(dim=0) - 2 * products * inverse[0] * inverse[1]


def same_size(z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (B, D, H, W) averaged down to the smaller height and width."""
    size = (min(z_s.shape[2], z_t.shape[2]), min(z_s.shape[3], z_t.shape[3]))
    of_size = [
        z if tuple(z.shape[2:]) == size else F.adaptive_avg_pool2d(z, size) for z in (z_s, z_t)
    ]
    return of_size[0], of_size[1]
