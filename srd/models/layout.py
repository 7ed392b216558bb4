"""In which order a GPU holds the numbers of a convolutional network's images: channels last, as a rule.

Not so where convolutions have groups of several channels, as those of RegNetY: cuDNN has kernels for
them on planes alone, and its copies from one order to the other take longer than the convolutions
(docs/benchmarks).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class PlanesConv2d(nn.Conv2d):
    """`nn.Conv2d` on planes among layers with channels last; a compiler merges its copies with others."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x.contiguous())
        return out.contiguous(memory_format=torch.channels_last)


def hold(network: nn.Module, *, compiled: bool) -> None:
    """Give a network on a GPU the order in which it is fast; it takes images in any.

    Args:
        compiled: whether it will be, by `torch.compile`.
    """
    convolutions = [layer for layer in network.modules() if type(layer) is nn.Conv2d]
    grouped = [layer for layer in convolutions if 1 < layer.groups < layer.in_channels]
    if grouped and not compiled:
        for layer in convolutions:  # of the network: `forward_features` would pass it by
            layer.register_forward_pre_hook(_planes)
        return
    network.to(memory_format=torch.channels_last)
    for layer in grouped:
        layer.__class__ = PlanesConv2d
        layer.weight.data = layer.weight.data.contiguous()


def _planes(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = given
    return images.contiguous(), *others
