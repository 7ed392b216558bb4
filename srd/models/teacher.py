"""Teachers: frozen, in evaluation mode for good, from files that are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from srd.errors import UserError
from srd.files.hashes import claimed_digits, sha256


class TeacherOutput(NamedTuple):
    """What a student learns from: features (B, D_t), globally averaged, and logits (B, C)."""

    features: Tensor
    logits: Tensor


class Normalization(NamedTuple):
    """Channel means and standard deviations that images were normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


class FrozenTeacher(nn.Module):
    """A model that is only read: no gradients, and batch-norm statistics that never move.

    Args:
        model: the network; it is frozen in place.
        read: calls it on images (B, 3, H, W) and returns a `TeacherOutput`.
        given: how the student's images are normalised.
        expected: how the teacher wants them; where it differs, images are converted.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[nn.Module, Tensor], TeacherOutput],
        given: Normalization,
        expected: Normalization,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.read = read
        self.converts = given != expected
        mean, std, to_mean, to_std = (
            torch.tensor(values).view(3, 1, 1) for values in (*given, *expected)
        )
        self.register_buffer("scale", std / to_std)
        self.register_buffer("shift", (mean - to_mean) / to_std)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode, whatever `mode` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        if self.converts:
            images = images * self.scale + self.shift
        return self.read(self.model, images)


def verify(path: str | Path) -> str:
    """The SHA-256 of a weights file, checked against the digits in its name where it has any.

    Raises:
        UserError: no such file, or the digits differ.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no teacher weights at {path}")
    digest = sha256(path)
    claimed = claimed_digits(path.name)
    if not digest.startswith(claimed):
        raise UserError(
            f"{path} is not the file its name claims: its SHA-256 starts with {digest[:8]}, not "
            f"{claimed[:8]}; download it again"
        )
    return digest
