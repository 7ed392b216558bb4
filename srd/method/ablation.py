"""The simple recipe with one of its parts exchanged, for the paper's own questions.

With P the projector, N the normalisation and d the distance, loss = d(N(P z_s), N(z_t)):

    N   none, l2 (each sample to length 1), layer and group (over the channels of each sample, or of
        each of its groups), batch (over the samples of each channel)           paper, table 1
    d   l1 and l2 (means over samples and channels), correlation (sum_d (c_d - 1)^2 with
        c_d = (1/B) sum_b s_bd t_bd), logsum (log sum_bd |s_bd - t_bd|^alpha)     paper, table 2
    P   none (equal widths), frozen (linear, as it was drawn: what the first release trained with),
        linear, mlp (hidden layers with ReLU), orthonormal (of orthonormal columns)    paper, figure 3

Batch normalisation, logsum with alpha 4 and a linear P are the paper's: `SimpleRecipeLoss` with
`match="elementwise"`, to the bit. The paper does not say how its other distances are scaled; a
study searches their weight.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from srd.distributed import processes, reduce
from srd.method.loss import Loss, at_least_float32, check_features
from srd.method.orthonormal import orthonormal
from srd.method.simple_recipe import BatchNormalize
from srd.strict import STRICT, Count, Positive

Normalisation = Literal["none", "l2", "layer", "group", "batch"]
Distance = Literal["l1", "l2", "correlation", "logsum"]
Projector = Literal["none", "frozen", "linear", "mlp", "orthonormal"]

ALPHA, GROUPS, HIDDEN = 4.0, 8, 1  # where they are read and not given


@dataclass(config=STRICT)
class AblationSettings:
    """Of `AblationLoss`, by name."""

    name: Literal["ablation"] = "ablation"
    normalisation: Normalisation = "batch"
    distance: Distance = "logsum"
    projector: Projector = "linear"
    alpha: Annotated[float, Field(ge=1)] | None = None  # logsum: 4
    groups: Count | None = None  # group: 8
    hidden_layers: Annotated[int, Field(ge=1, le=8)] | None = None  # mlp: 1, each D_t wide
    norm_eps: Positive = 1e-4

    @model_validator(mode="after")
    def _each_is_read(self) -> AblationSettings:
        for name, of, value in (
            ("alpha", "logsum", self.distance),
            ("groups", "group", self.normalisation),
            ("hidden_layers", "mlp", self.projector),
        ):
            if getattr(self, name) is not None and value != of:
                raise ValueError(f"should have no {name}, which only {of} reads")
        return self


class AblationLoss(Loss):
    """d(N(P z_s), N(z_t)); computed in float32 or better, outside autocast.

    Args:
        student_dim, teacher_dim: D_s and D_t.
        normalisation, distance, projector: see the equations above.
        alpha: power of logsum. groups: of the channels, for group. hidden_layers: of an mlp, each
            D_t wide. None: 4, 8 and 1.
        norm_eps: added to variances.

    Shapes: z_s (B, D_s) and z_t (B, D_t) to a scalar. Sums over samples are the global batch's.

    Raises:
        ValueError: widths that do not fit, or no name of the above.
    """

    settings = AblationSettings

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        normalisation: Normalisation = "batch",
        distance: Distance = "logsum",
        projector: Projector = "linear",
        alpha: float | None = None,
        groups: int | None = None,
        hidden_layers: int | None = None,
        norm_eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.dims, self.eps = (student_dim, teacher_dim), float(norm_eps)
        self.normalisation, self.distance = normalisation, distance
        self.alpha, self.groups = float(alpha or ALPHA), groups or GROUPS
        self.across_ranks = True
        self.embed = _projector(projector, student_dim, teacher_dim, hidden_layers or HIDDEN)
        if normalisation == "group" and teacher_dim % self.groups:
            raise ValueError(f"{teacher_dim} channels do not divide into {self.groups} groups")
        if normalisation == "batch":
            self.bn_s = BatchNormalize(teacher_dim, self.eps)
            self.bn_t = BatchNormalize(teacher_dim, self.eps)

    def use_local_statistics(self) -> None:
        self.across_ranks = False
        for module in self.children():
            if isinstance(module, BatchNormalize):
                module.across_ranks = False

    @property
    def projector(self) -> nn.Module:
        """P, from the student's width to the teacher's."""
        return self.embed

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        check_features(z_s, z_t, student_dim=self.dims[0], teacher_dim=self.dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            if self.normalisation == "batch":
                s, t = self.bn_s(self.project(z_s)), self.bn_t(z_t)
            else:
                s, t = self.normalise(self.project(z_s)), self.normalise(z_t)
            return self.measure(s, t)

    def project(self, z: Tensor) -> Tensor:
        """P z in the type of z, whatever P's parameters are in."""
        layers: Any = self.embed if isinstance(self.embed, nn.Sequential) else [self.embed]
        for layer in layers:
            if isinstance(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.to(z.dtype)
                z = F.linear(z, layer.weight.to(z.dtype), bias)
            else:
                z = layer(z)
        return z

    def normalise(self, x: Tensor) -> Tensor:
        """Every sample by itself: (B, D) to (B, D)."""
        match self.normalisation:
            case "l2":
                return F.normalize(x, dim=1)
            case "layer":
                return F.layer_norm(x, x.shape[1:], eps=self.eps)
            case "group":
                return F.group_norm(x, self.groups, eps=self.eps)
        return x

    def measure(self, s: Tensor, t: Tensor) -> Tensor:
        """The distance of two (B, D)."""
        total = reduce.global_sum if self.across_ranks else lambda x: x
        count = s.shape[0] * (processes.world_size() if self.across_ranks else 1)
        if self.distance == "correlation":
            return (total((s * t).sum(dim=0)) / count - 1).square().sum()
        difference = (s - t).abs()
        if self.distance == "logsum":
            powers = total(difference.pow(self.alpha).sum())
            return torch.log(powers.clamp_min(torch.finfo(powers.dtype).tiny))
        power = difference if self.distance == "l1" else difference.square()
        return total(power.sum()) / (count * s.shape[1])


def _projector(name: Projector, student_dim: int, teacher_dim: int, hidden: int) -> nn.Module:
    if name == "none":
        if student_dim != teacher_dim:
            raise ValueError(
                f"no projector goes from {student_dim} to {teacher_dim} channels: take a teacher of "
                "the student's width, or projector linear"
            )
        return nn.Identity()
    if name == "orthonormal":
        return orthonormal(student_dim, teacher_dim)
    if name == "mlp":
        layers: list[nn.Module] = []
        for width in [student_dim, *[teacher_dim] * (hidden - 1)]:
            layers += [nn.Linear(width, teacher_dim), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(teacher_dim, teacher_dim))
    return nn.Linear(student_dim, teacher_dim).requires_grad_(name != "frozen")
