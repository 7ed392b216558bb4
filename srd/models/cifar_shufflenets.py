"""ShuffleNet V1 and V2 for 32x32 pixels; see `srd.models.cifar`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from srd.models.cifar_parts import Network, conv


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels (B, D, H, W) of all groups taken in turn."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleV1Block(nn.Module):
    """Grouped 1x1 convolutions around one of each channel (Zhang et al., CVPR 2018)."""

    def __init__(self, d_in: int, d_out: int, stride: int, groups: int) -> None:
        super().__init__()
        middle, self.stride = d_out // 4, stride
        self.groups = 1 if d_in == 24 else groups
        self.conv1, self.bn1 = conv(d_in, middle, 1, 1, self.groups), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = conv(middle, middle, 3, stride, middle), nn.BatchNorm2d(middle)
        self.conv3, self.bn3 = conv(middle, d_out, 1, 1, groups), nn.BatchNorm2d(d_out)

    def forward(self, x: Tensor) -> Tensor:
        out = shuffled(F.relu(self.bn1(self.conv1(x))), self.groups)
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        if self.stride == 1:
            return F.relu(out + x)
        return F.relu(torch.cat([out, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class ShuffleNetV1(Network):
    """ShuffleNetV1 of three groups."""

    head = "linear"

    def __init__(self, num_classes: int, groups: int = 3) -> None:
        super().__init__()
        self.conv1, self.bn1, d_in = conv(3, 24, 1), nn.BatchNorm2d(24), 24
        for stage, (width, count) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            first = ShuffleV1Block(d_in, width - d_in, 2, groups)
            rest = [ShuffleV1Block(width, width, 1, groups) for _ in range(count - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
            d_in = width
        self.linear = nn.Linear(d_in, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class ShuffleV2Block(nn.Module):
    """Half of the channels pass, the others are convolved (Ma et al., ECCV 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = conv(half, half, 1), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = conv(half, half, 3, 1, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        passing, out = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(out)))))
        out = F.relu(self.bn3(self.conv3(out)))
        return shuffled(torch.cat([passing, out], dim=1), 2)


class ShuffleV2Down(nn.Module):
    """Both halves are convolved with stride 2."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        half = d_out // 2
        self.conv1, self.bn1 = conv(d_in, d_in, 3, 2, d_in), nn.BatchNorm2d(d_in)
        self.conv2, self.bn2 = conv(d_in, half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = conv(d_in, half, 1), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = conv(half, half, 3, 2, half), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = conv(half, half, 1), nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        right = F.relu(self.bn5(self.conv5(right)))
        return shuffled(torch.cat([left, right], dim=1), 2)


class ShuffleNetV2(Network):
    """ShuffleNetV2 of width 1."""

    head = "linear"

    def __init__(self, num_classes: int, last: int = 1024) -> None:
        super().__init__()
        self.conv1, self.bn1, d_in = conv(3, 24, 1), nn.BatchNorm2d(24), 24
        for stage, (width, count) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            rest = [ShuffleV2Block(width) for _ in range(count)]
            self.add_module(f"layer{stage}", nn.Sequential(ShuffleV2Down(d_in, width), *rest))
            d_in = width
        self.conv2, self.bn2 = conv(d_in, last, 1), nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return F.relu(self.bn2(self.conv2(x)))
