"""What the networks for CIFAR have in common."""

from __future__ import annotations

from torch import Tensor, nn

from srd.models.outputs import Output


class Network(nn.Module):
    """What the networks share: logits from the mean of the last map."""

    head: str  # the classifier's name

    def maps(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the last feature map (B, D, H', W')."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Features (B, D) to logits (B, C)."""
        logits: Tensor = getattr(self, self.head)(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.maps(images).mean(dim=(2, 3)))


def read(model: Network, images: Tensor, *, features: bool = True) -> Output:
    """What such a network says of images."""
    maps = model.maps(images)
    pooled = maps.mean(dim=(2, 3))
    logits = model.classify(pooled)
    return Output(pooled, logits, maps=maps) if features else Output(None, logits)


def conv(d_in: int, d_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, divided by the stride, without bias."""
    return nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, groups=groups, bias=False)
