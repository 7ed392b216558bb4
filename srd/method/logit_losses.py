"""Losses between logits that take the place of the KL divergence: DKD, DIST, standardised KD.

With p = softmax(z_s / T) and q = softmax(z_t / T) of B samples and C classes, c the target:

    dkd    T^2 mean_b [ alpha KL((q_c, 1 - q_c) || (p_c, 1 - p_c)) + beta KL(q' || p') ]
           q', p' over the other classes, q'_i = q_i / (1 - q_c)
           Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7
    dist   T^2 [ beta (1 - mean_b r(p_b:, q_b:)) + gamma (1 - mean_i r(p_:i, q_:i)) ]
           r Pearson's correlation
           Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    kd_ls  weight T^2 mean_b KL(q || p) of z-scores, (z - mean z) / (std z + eps), std over C - 1
           Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from srd.distributed import processes, reduce
from srd.method.logits import distillation_kl
from srd.method.loss import Loss, at_least_float32, check_features
from srd.strict import STRICT, NonNegative, Positive


class LogitLoss(Loss):
    """What the losses of this file share: they read the logits of both, and own no parameters."""

    reads, logits = "logits", False

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        if student_dim != teacher_dim:
            raise ValueError(f"logits of {student_dim} and of {teacher_dim} classes")
        self.classes = student_dim

    def compared(self, z_s: Tensor, z_t: Tensor) -> list[Tensor]:
        """Both logits, checked, in float32 or better; the teacher's get no gradient."""
        check_features(z_s, z_t, student_dim=self.classes, teacher_dim=self.classes)
        return at_least_float32(z_s, z_t.detach())


def standardised(logits: Tensor, eps: float) -> Tensor:
    """Z-scores of each sample's logits (B, C), as Sun et al. take them."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (eps + logits.std(dim=1, keepdim=True))


@dataclass(config=STRICT)
class DKDSettings:
    """Of `DKD`, by name: the authors' for CIFAR-100; for ImageNet they set beta and T to 0.5 and 1."""

    name: Literal["dkd"] = "dkd"
    alpha: NonNegative = 1.0
    beta: NonNegative = 8.0
    temperature: Positive = 4.0
    standardise: bool = False  # z-scores in the place of the logits, as in `kd_ls`


class DKD(LogitLoss):
    """Decoupled knowledge distillation.

    The formula is for one class. Mixed targets (B, C) are taken as a weighted choice of two: the
    loss is the weighted mean of the formula's for both. The weights are the targets less their
    smallest (what label smoothing gives to every class), made to sum to 1, so that a smoothed class
    is that class.

    Args:
        student_dim, teacher_dim: C, the classes.
        alpha: weight of the target class against all others.
        beta: weight of the divergence among the others.
        temperature: T.
        standardise: of the logits, first.

    Shapes: z_s (B, C), z_t (B, C), targets (B,) or (B, C) to a scalar.
    """

    needs, settings = frozenset({"targets"}), DKDSettings

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float = 4.0,
        standardise: bool = False,
    ) -> None:
        super().__init__(student_dim, teacher_dim)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.standardise = standardise

    def forward(self, z_s: Tensor, z_t: Tensor, *, targets: Tensor) -> Tensor:
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = self.compared(z_s, z_t)
            if self.standardise:
                z_s, z_t = standardised(z_s, STD_EPS), standardised(z_t, STD_EPS)
            z_s, z_t = z_s / self.temperature, z_t / self.temperature
            if not targets.is_floating_point():
                loss = self._of_class(z_s, z_t, targets)
            else:
                weights, classes = two_classes(targets.to(z_s.dtype))
                each = [self._of_class(z_s, z_t, column) for column in classes.unbind(dim=1)]
                loss = (weights * torch.stack(each, dim=1)).sum(dim=1)
            return loss.mean() * self.temperature**2

    def _of_class(self, z_s: Tensor, z_t: Tensor, target: Tensor) -> Tensor:
        """The formula for one class a sample: (B, C), (B, C), (B,) to (B,)."""
        is_target = F.one_hot(target, self.classes).bool()
        (p_1, p_0, p_others), (q_1, q_0, q_others) = (_decoupled(z, is_target) for z in (z_s, z_t))
        binary = q_1.exp() * (q_1 - p_1) + q_0.exp() * (q_0 - p_0)
        among = q_others.masked_fill(is_target, -torch.inf).exp() * (q_others - p_others)
        return self.alpha * binary + self.beta * among.sum(dim=1)


def _decoupled(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_c (B,), log(1 - p_c) (B,), and log p' (B, C), whose entry for the target means nothing.

    From sums over the other classes, so that nothing cancels where p_c is nearly 1.
    """
    of_all = logits.logsumexp(dim=1)
    of_others = logits.masked_fill(is_target, -torch.inf).logsumexp(dim=1)
    own = logits.masked_fill(~is_target, 0.0).sum(dim=1)
    return own - of_all, of_others - of_all, logits - of_others[:, None]


def two_classes(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mixed targets (B, C) as two classes (B, 2) with weights (B, 2) that sum to 1."""
    floor = targets.min(dim=1, keepdim=True).values if targets.shape[1] > 2 else 0.0
    weights, classes = (targets - floor).topk(2, dim=1)
    total = weights.sum(dim=1, keepdim=True)
    return torch.where(total > 0, weights / total, 0.5), classes


@dataclass(config=STRICT)
class DISTSettings:
    """Of `DIST`, by name: the authors' for ImageNet; for CIFAR-100 they set T to 4."""

    name: Literal["dist"] = "dist"
    beta: NonNegative = 2.0
    gamma: NonNegative = 2.0
    temperature: Positive = 1.0


class DIST(LogitLoss):
    """Correlations between predictions: within each sample, and of each class over the batch.

    Args:
        student_dim, teacher_dim: C, the classes.
        beta: weight of the relation between the classes of a sample.
        gamma: weight of the relation between the samples of a class.
        temperature: T (the authors' tau).

    Shapes: z_s (B, C) and z_t (B, C) to a scalar.
    """

    settings = DISTSettings

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        beta: float = 2.0,
        gamma: float = 2.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student_dim, teacher_dim)
        self.beta, self.gamma, self.temperature = beta, gamma, temperature
        self.across_ranks = True

    def use_local_statistics(self) -> None:
        """From now on: correlations over each rank's share of the batch."""
        self.across_ranks = False

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = self.compared(z_s, z_t)
            p, q = (z_s / self.temperature).softmax(dim=1), (z_t / self.temperature).softmax(dim=1)
            inter = 1 - _correlation(*(x - x.mean(dim=1, keepdim=True) for x in (p, q)), dim=1)
            loss = self.beta * inter.mean() + self.gamma * self._between_samples(p, q)
            return loss * self.temperature**2

    def _between_samples(self, p: Tensor, q: Tensor) -> Tensor:
        """1 - r of each class over the global batch, averaged over the classes."""
        total = reduce.global_sum if self.across_ranks else _local
        count = len(p) * (processes.world_size() if self.across_ranks else 1)
        sums = total(torch.stack([p.sum(dim=0), q.sum(dim=0)]))
        p, q = p - sums[0] / count, q - sums[1] / count
        products = total(torch.stack([(a * b).sum(dim=0) for a, b in ((p, q), (p, p), (q, q))]))
        return (1 - products[0] / _lengths(products[1], products[2])).mean()


def _local(x: Tensor) -> Tensor:
    return x


def _correlation(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    return (a * b).sum(dim=dim) / _lengths(a.square().sum(dim=dim), b.square().sum(dim=dim))


def _lengths(a: Tensor, b: Tensor) -> Tensor:
    """|a| |b| from squared lengths; a vector shorter than rounding has no direction, nor a gradient."""
    smallest = COSINE_EPS**2
    return a.clamp_min(smallest).sqrt() * b.clamp_min(smallest).sqrt()


@dataclass(config=STRICT)
class StandardisedKDSettings:
    """Of `StandardisedKD`, by name: the authors' base temperature and weight."""

    name: Literal["kd_ls"] = "kd_ls"
    temperature: Positive = 2.0
    weight: NonNegative = 9.0


class StandardisedKD(LogitLoss):
    """Knowledge distillation of standardised logits.

    Args:
        student_dim, teacher_dim: C, the classes.
        temperature: T, the authors' base temperature.
        weight: of the divergence.

    Shapes: z_s (B, C) and z_t (B, C) to a scalar.
    """

    settings = StandardisedKDSettings

    def __init__(
        self, student_dim: int, teacher_dim: int, temperature: float = 2.0, weight: float = 9.0
    ) -> None:
        super().__init__(student_dim, teacher_dim)
        self.temperature, self.weight = temperature, weight

    def forward(self, z_s: Tensor, z_t: Tensor) -> Tensor:
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = self.compared(z_s, z_t)
            scores = standardised(z_s, STD_EPS), standardised(z_t, STD_EPS)
            return self.weight * distillation_kl(*scores, self.temperature)


STD_EPS = 1e-7  # the authors', beside a standard deviation
COSINE_EPS = 1e-8  # torch's for a cosine, which torchdistill's DIST calls
