"""What a loss by name is: a module that owns all it learns, and says what it reads."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Reads = Literal["features", "tokens", "maps", "logits"]
Needs = Literal["targets", "keys"]


class Loss(nn.Module):
    """A loss between what a student and a teacher say of the same images.

    It is built from `(student_dim, teacher_dim, **settings)` and called with `(z_s, z_t)`, of the
    shapes below, for a scalar in float32 or better, computed outside autocast. Its parameters, the
    projector's say, are trained and saved with the student; the teacher's side gets no gradient.

    Attributes:
        reads: `"features"` (B, D), `"tokens"` (B, N, D) with N the same for both, `"maps"`
            (B, D, H, W), or `"logits"` (B, C); None for losses that are never built, since they
            compare nothing of their own.
        needs: what it is called with besides, by keyword: `"targets"` (B,) or, mixed, (B, C);
            `"keys"` (B, 2), (epoch, index) of every image, and `train_images`, how many there are,
            when it is built.
        positions: that a map has at least; of fewer it says the same of all images.
        logits: whether the KL divergence to the teacher's logits is added to it.
        settings: a strict pydantic dataclass: `name`, then the keywords of `__init__`.
    """

    reads: ClassVar[Reads | None] = "features"
    needs: ClassVar[frozenset[Needs]] = frozenset()
    positions: ClassVar[int] = 1
    logits: ClassVar[bool] = True
    settings: ClassVar[type[Any]]

    def aligned(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor] | None:
        """The two representations as the loss compares them, projected and normalised, of the same
        shape (B, ..., D_t); None for a loss that does not say."""
        return None

    def use_local_statistics(self) -> None:
        """Take statistics over each rank's share of the batch, not over the global batch.

        A mean over samples has none: it is the same on equal shares, averaged over ranks.
        """


def at_least_float32(*tensors: Tensor) -> list[Tensor]:
    """The tensors in their common type, float32 or better."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]


def check_features(z_s: Tensor, z_t: Tensor, *, student_dim: int, teacher_dim: int) -> None:
    """Raise a ValueError unless z_s is (B, student_dim) and z_t is (B, teacher_dim)."""
    for name, z, dim in (("z_s", z_s, student_dim), ("z_t", z_t, teacher_dim)):
        if z.ndim != 2 or z.shape[1] != dim:
            raise ValueError(f"{name} must have shape (batch, {dim}), not {tuple(z.shape)}")
    _check_samples(z_s, z_t)


def check_maps(z_s: Tensor, z_t: Tensor, *, student_dim: int, teacher_dim: int) -> None:
    """Raise a ValueError unless z_s is (B, student_dim, H, W) and z_t is (B, teacher_dim, H', W')."""
    for name, z, dim in (("z_s", z_s, student_dim), ("z_t", z_t, teacher_dim)):
        if z.ndim != 4 or z.shape[1] != dim:
            shape = f"(batch, {dim}, height, width)"
            raise ValueError(f"{name} must have shape {shape}, not {tuple(z.shape)}")
    _check_samples(z_s, z_t)


def _check_samples(z_s: Tensor, z_t: Tensor) -> None:
    if z_s.shape[0] != z_t.shape[0]:
        raise ValueError(
            f"z_s has {z_s.shape[0]} samples and z_t has {z_t.shape[0]}: one teacher "
            "representation for each student representation"
        )
