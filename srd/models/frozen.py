"""A teacher's network: frozen, in evaluation mode for good, with images as it wants them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.device import in_bfloat16
from srd.models.outputs import Output

ROUNDED_BY_AUTOCAST = (nn.Conv1d, nn.Conv2d, nn.Linear)  # their weights too, at every call


def round_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of convolutions and linear layers once, not again in every autocast."""
    for layer in network.modules():
        if type(layer) in ROUNDED_BY_AUTOCAST:
            layer.to(dtype)


class Normalization(NamedTuple):
    """Channel means and standard deviations that images were normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


class FrozenTeacher(nn.Module):
    """A model that is only read: no gradients, and batch-norm statistics that never move.

    Args:
        model: the network; it is frozen in place.
        read: calls it on images (B, C, H, W) of the channels that it has means for.
        given: how the student's images are normalised; greys become three equal channels, and an
            opacity is left out, for a teacher of three.
        expected: how the teacher wants them; where it differs, images are converted.
        size: pixels of the images that it reads, to which others are resized; None: of any.
        bf16: compute in bfloat16; what it says is of the images' type nevertheless.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[nn.Module, Tensor], Output],
        given: Normalization,
        expected: Normalization,
        size: int | None = None,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.read, self.size, self.bf16 = read, size, bf16
        self.in_chans, self.reads = len(given.mean), len(expected.mean)
        if self.in_chans == 1:
            given = Normalization(*(tuple(values) * self.reads for values in given))
        given = Normalization(given.mean[: self.reads], given.std[: self.reads])
        self.converts = given != expected
        mean, std, to_mean, to_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (*given, *expected)
        )
        self.register_buffer("scale", std / to_std)
        self.register_buffer("shift", (mean - to_mean) / to_std)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode, whatever `mode` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Output:
        if self.in_chans != self.reads:
            images = images.expand(-1, 3, -1, -1) if self.in_chans == 1 else images[:, :3]
        if self.converts:
            images = images * self.scale + self.shift
        if self.size is not None and images.shape[-1] != self.size:
            size = (self.size, self.size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        if not self.bf16:
            return self.read(self.model, images)
        with in_bfloat16(images.device):
            return self.read(self.model, images).to(images.dtype)
