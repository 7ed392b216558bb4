"""CRD: a student's and a teacher's views of one image are told from those of other images.

Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699).
With s = P_s z_s and t = P_t z_t of length 1, and a bank that holds a past t_i and s_i of each of the M
training images, image b against itself (i = b) and K others:

    h_i    = exp(s . t_i / T) / Z,   Z = M times the first step's mean of exp(s . t_i / T)
    loss_s = -mean_b [ log h_b / (h_b + K / M) + sum_i log (K / M) / (h_i + K / M) ]     equation 18
    loss   = weight (loss_s + loss_t), loss_t the same of t against the bank of s

and afterwards the bank's own entries move: t_b <- momentum t_b + (1 - momentum) t, made length 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from srd.distributed import reduce
from srd.method.loss import Loss, at_least_float32, check_features
from srd.strict import STRICT, Below1, NonNegative, Positive

EPS = 1e-7  # the authors', beside h + K / M
FEW = (
    16  # times 1 + K images, up to which a product with all of them is cheaper than copies of some
)


@dataclass(config=STRICT)
class CRDSettings:
    """Of `CRD`, by name: the authors' for CIFAR-100."""

    name: Literal["crd"] = "crd"
    dim: Annotated[int, Field(ge=1, le=65536)] = 128
    negatives: Annotated[int, Field(ge=1, le=2**20)] = 16384
    temperature: Positive = 0.07
    momentum: Below1 = 0.5
    weight: NonNegative = 0.8


class CRD(Loss):
    """Contrastive representation distillation.

    The others of an image are drawn anew in every epoch, with replacement, from all other images:
    a function of (the loss's own seed, epoch, index), so that a restart, or another number of
    processes, changes none. (The authors draw from images of other classes, or from all, at random.)
    Bank, constants and seed are buffers: they are saved with the weights. The bank takes
    2 M dim numbers, a step B K dim.

    Args:
        student_dim: D_s, width of the student's representation.
        teacher_dim: D_t, width of the teacher's.
        train_images: M.
        dim: of the space in which they are compared.
        negatives: K.
        temperature: T.
        momentum: of the bank.
        weight: of both losses.

    Shapes: z_s (B, D_s), z_t (B, D_t), keys (B, 2) of (epoch, index), all different, to a scalar.
    """

    bank_s: Tensor
    bank_t: Tensor
    constants: Tensor
    seed: Tensor
    needs, settings = frozenset({"keys"}), CRDSettings

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        weight: float = 0.8,
        *,
        train_images: int,
    ) -> None:
        super().__init__()
        if train_images < 2:
            raise ValueError("CRD compares images: train_images must be at least 2")
        self.train_images, self.negatives = train_images, negatives
        self.temperature, self.momentum, self.weight = temperature, momentum, weight
        self.projector = nn.Linear(student_dim, dim)
        self.teacher_projector = nn.Linear(teacher_dim, dim)
        bound = (3 / dim) ** 0.5
        for name in ("bank_s", "bank_t"):
            bank = torch.empty(train_images, dim).uniform_(-bound, bound)
            self.register_buffer(name, bank)
        self.register_buffer("constants", torch.zeros(2))  # Z of s and of t; 0: not yet
        self.register_buffer("seed", torch.randint(2**31, ()))

    def forward(self, z_s: Tensor, z_t: Tensor, *, keys: Tensor) -> Tensor:
        dims = (self.projector.in_features, self.teacher_projector.in_features)
        check_features(z_s, z_t, student_dim=dims[0], teacher_dim=dims[1])
        with torch.autocast(z_s.device.type, enabled=False):
            z_s, z_t = at_least_float32(z_s, z_t.detach())
            s, t = _embedded(self.projector, z_s), _embedded(self.teacher_projector, z_t)
            compared = self.compared_images(keys).to(z_s.device)
            h_s, h_t = (
                self._scores(s, self.bank_t, compared),
                self._scores(t, self.bank_s, compared),
            )
            constants = self._normalising(h_s, h_t)
            loss = self._loss(h_s / constants[0]) + self._loss(h_t / constants[1])
            if self.training:
                self._remember(keys[:, 1].to(z_s.device), s.detach(), t.detach())
            return self.weight * loss

    def compared_images(self, keys: Tensor) -> Tensor:
        """Indices (B, 1 + K) of the images that each is compared with, itself first."""
        rows, seed, others = [], int(self.seed), self.train_images - 1
        for epoch, index in keys.tolist():
            # RandomState's streams are frozen by NumPy's compatibility policy.
            words = np.random.SeedSequence((seed, epoch, index)).generate_state(4)
            drawn = np.random.RandomState(words).randint(others, size=self.negatives)
            rows.append(np.concatenate([[index], drawn + (drawn >= index)]))
        return torch.from_numpy(np.stack(rows))

    def _scores(self, z: Tensor, bank: Tensor, compared: Tensor) -> Tensor:
        """exp(z . entry / T): (B, dim) to (B, 1 + K)."""
        if len(bank) <= FEW * compared.shape[1]:  # with all images, then those that were drawn
            entries = bank.to(z.dtype, copy=True)  # as they are now, for the backward pass
            return (z @ entries.T / self.temperature).exp().gather(1, compared)
        entries = bank[compared].to(z.dtype)
        return ((entries @ z[:, :, None]).squeeze(2) / self.temperature).exp()

    @torch.no_grad()
    def _normalising(self, *scores: Tensor) -> Tensor:
        """Z of both, set at the first step: means over the global batch."""
        if not bool((self.constants > 0).all()):
            means = torch.stack([h.mean() for h in scores])
            self.constants.copy_(reduce.reduce_mean(means) * self.train_images)
        return self.constants.to(scores[0].dtype)

    def _loss(self, h: Tensor) -> Tensor:
        noise = self.negatives / self.train_images
        own, others = h[:, 0], h[:, 1:]
        against = (noise / (others + noise + EPS)).log().sum(dim=1)
        return -((own / (own + noise + EPS)).log() + against).mean()

    @torch.no_grad()
    def _remember(self, index: Tensor, s: Tensor, t: Tensor) -> None:
        """Move the bank's entries of the global batch."""
        index, s, t = (reduce.gather(x) for x in (index, s, t))
        for bank, z in ((self.bank_s, s), (self.bank_t, t)):
            moved = self.momentum * bank[index].to(z.dtype) + (1 - self.momentum) * z
            bank[index] = F.normalize(moved).to(bank.dtype)


def _embedded(projector: nn.Linear, z: Tensor) -> Tensor:
    return F.normalize(F.linear(z, projector.weight.to(z.dtype), projector.bias.to(z.dtype)))
