"""What a network says of images: features, logits, tokens; and how wide they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from srd.errors import UserError

LIKE = {"tokens": " (a vision transformer)", "maps": " (a CNN)"}
Representation = Literal["features", "tokens", "maps", "logits"]


class Output(NamedTuple):
    """What a student or a teacher says of a batch.

    Args:
        features: (B, D), one vector an image; None where nobody reads them.
        logits: (B, C).
        distilled_logits: (B, C) of a second head, in training; None for models with one head.
        tokens: (B, N, D), one for each patch, without class tokens and the like; None for models
            whose last features are no sequence of tokens.
        maps: (B, D, H, W), the last feature map; None for models that have none.
    """

    features: Tensor | None
    logits: Tensor
    distilled_logits: Tensor | None = None
    tokens: Tensor | None = None
    maps: Tensor | None = None

    def read(self, what: Representation) -> Tensor | None:
        """What a loss reads. Tokens that fill a square are a map too, row by row."""
        if what == "maps" and self.maps is None and self.tokens is not None:
            side = math.isqrt(self.tokens.shape[1])
            if side**2 == self.tokens.shape[1]:
                return self.tokens.transpose(1, 2).unflatten(2, (side, side))
        value: Tensor | None = getattr(self, what)
        return value

    def to(self, dtype: torch.dtype) -> Output:
        """All of it in another type."""
        there = {name: value for name, value in self._asdict().items() if value is not None}
        return self._replace(**{name: value.to(dtype) for name, value in there.items()})


class Read(Protocol):
    """How a model is read: called with it and images (B, 3, H, W).

    Without `features`, nothing is computed that `model(images)` does not compute.
    """

    def __call__(self, model: Any, images: Tensor, *, features: bool = True) -> Output: ...


@torch.no_grad()
def of_black_image(network: nn.Module, image_size: int) -> Output:
    """What `network` (images to `Output`) says of one black image, in evaluation mode.

    It is left as it was: no mode changes, no running statistics, no random numbers are drawn.
    """
    with unchanged(network, training=False):
        return network(black_images(network, 1, image_size))


def black_images(network: nn.Module, count: int, image_size: int) -> Tensor:
    """Images (count, 3, image_size, image_size) of the type and on the device of `network`.

    Its `in_chans` says where they have other channels.
    """
    like = next(chain(network.parameters(), network.buffers()))
    channels = getattr(network, "in_chans", 3)
    return torch.zeros(
        count, channels, image_size, image_size, dtype=like.dtype, device=like.device
    )


@contextmanager
def unchanged(network: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, `network` is in training or in evaluation mode; it leaves no trace: no mode, no running
    statistics, no random number drawn."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
    like = next(chain(network.parameters(), network.buffers()))
    try:
        network.train(training)
        with torch.random.fork_rng([like.device] if like.is_cuda else []):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def width(
    network: nn.Module,
    reads: Representation,
    *,
    image_size: int,
    role: str,
    positions: int = 1,
) -> int:
    """D of the features, tokens or maps of a network that gives `Output`; C of its logits.

    Args:
        role: student or teacher, for the message.
        positions: that a map must have.

    Raises:
        UserError: it has none.
    """
    value = of_black_image(network, image_size).read(reads)
    if value is None:
        raise UserError(
            f"the loss reads {reads}, and the {role} has none: take a loss that reads something "
            f"else, or another {role}" + LIKE.get(reads, "")
        )
    return dim(value.shape[1:], reads, positions=positions, what=f"the {role}'s map")


def dim(shape: Sequence[int], reads: Representation, *, positions: int, what: str) -> int:
    """D, from the shape of what is said of an image: (D,), (N, D), or a map's (D, H, W).

    Raises:
        UserError: a map of fewer positions.
    """
    if reads != "maps":
        return shape[-1]
    if (there := math.prod(shape[1:])) < positions:
        raise UserError(
            f"the loss compares positions, and {what} has only {there}: take larger images, or "
            "another loss"
        )
    return shape[0]
