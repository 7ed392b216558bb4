"""Networks for 32x32 pixels of the distillation literature's CIFAR-100 pairs.

Their weights have the names of the public checkpoints of mdistiller and RepDistiller, from whose tables
the sizes are. Each has `maps`, images (B, 3, H, W) to the last feature map, whose mean over positions is
what its classifier reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from srd.models.cifar_parts import Network, conv
from srd.models.cifar_shufflenets import ShuffleNetV1, ShuffleNetV2


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1 to four times the width."""

    def __init__(self, d_in: int, width: int, stride: int, bottleneck: bool, short: str) -> None:
        super().__init__()
        d_out = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv(d_in, width, 1), conv(width, width, 3, stride), conv(width, d_out, 1)]
        else:
            layers = [conv(d_in, width, 3, stride), conv(width, width)]
        for number, layer in enumerate(layers, start=1):
            self.add_module(f"conv{number}", layer)
            self.add_module(f"bn{number}", nn.BatchNorm2d(layer.out_channels))
        self.count, self.short = len(layers), short
        changes = stride > 1 or d_in != d_out
        way = [conv(d_in, d_out, 1, stride), nn.BatchNorm2d(d_out)] if changes else []
        self.add_module(short, nn.Sequential(*way))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for number in range(1, self.count + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            out = F.relu(out) if number < self.count else out
        return F.relu(out + self.get_submodule(self.short)(x))


class ResNet(Network):
    """ResNets of basic blocks in three stages, or of bottlenecks in four."""

    def __init__(
        self, widths: tuple[int, ...], blocks: tuple[int, ...], num_classes: int, bottleneck: bool
    ) -> None:
        super().__init__()
        self.head, short = ("linear", "shortcut") if bottleneck else ("fc", "downsample")
        self.conv1, self.bn1 = conv(3, widths[0]), nn.BatchNorm2d(widths[0])
        d_in, self.stages = widths[0], len(blocks)
        for stage, (width, count) in enumerate(zip(widths[1:], blocks, strict=True), start=1):
            layers = []
            for number in range(count):
                stride = 2 if stage > 1 and number == 0 else 1
                layers.append(ResidualBlock(d_in, width, stride, bottleneck, short))
                d_in = 4 * width if bottleneck else width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.add_module(self.head, nn.Linear(d_in, num_classes))

    def maps(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class WideBlock(nn.Module):
    """Normalisation and ReLU before each convolution (Zagoruyko and Komodakis, BMVC 2016)."""

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(d_in), conv(d_in, d_out, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(d_out), conv(d_out, d_out)
        self.convShortcut = conv(d_in, d_out, 1, stride) if d_in != d_out else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        way = x if self.convShortcut is None else self.convShortcut(out)
        return way + self.conv2(F.relu(self.bn2(self.conv1(out))))


class WideStage(nn.Module):
    """Blocks, of which the first one strides."""

    def __init__(self, count: int, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        first = WideBlock(d_in, d_out, stride)
        self.layer = nn.Sequential(first, *[WideBlock(d_out, d_out, 1) for _ in range(count - 1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Network):
    """WRN-depth-factor."""

    head = "fc"

    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        count, widths = (depth - 4) // 6, [16 * factor, 32 * factor, 64 * factor]
        self.conv1 = conv(3, 16)
        self.block1 = WideStage(count, 16, widths[0], 1)
        self.block2 = WideStage(count, widths[0], widths[1], 2)
        self.block3 = WideStage(count, widths[1], widths[2], 2)
        self.bn1, self.fc = nn.BatchNorm2d(widths[2]), nn.Linear(widths[2], num_classes)

    def maps(self, images: Tensor) -> Tensor:
        return F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(images))))))


class VGG(Network):
    """VGG with batch norms; `count` convolutions in each of five blocks."""

    head = "classifier"

    def __init__(self, count: int, num_classes: int) -> None:
        super().__init__()
        d_in = 3
        for number, width in enumerate((64, 128, 256, 512, 512)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [nn.Conv2d(d_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                d_in = width
            self.add_module(f"block{number}", nn.Sequential(*layers))
        self.classifier = nn.Linear(d_in, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        x = images
        for number in range(5):
            x = self.get_submodule(f"block{number}")(x)
            # Of 32 pixels the last two blocks see the same size.
            x = F.max_pool2d(x, 2) if number < 3 or (number == 3 and images.shape[2] == 64) else x
        return x


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, contract (Sandler et al., CVPR 2018)."""

    def __init__(self, d_in: int, d_out: int, stride: int, expand: int) -> None:
        super().__init__()
        wide, self.adds = d_in * expand, stride == 1 and d_in == d_out
        self.conv = nn.Sequential(
            conv(d_in, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(),
            conv(wide, wide, 3, stride, wide), nn.BatchNorm2d(wide), nn.ReLU(),
            conv(wide, d_out, 1), nn.BatchNorm2d(d_out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class MobileNetV2(Network):
    """MobileNetV2 of half the width."""

    head = "classifier"
    # expansion, width, blocks, stride
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
              (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip

    def __init__(self, num_classes: int, factor: float = 0.5, last: int = 1280) -> None:
        super().__init__()
        d_in, stages = int(32 * factor), []
        self.conv1 = nn.Sequential(conv(3, d_in, 3, 2), nn.BatchNorm2d(d_in), nn.ReLU())
        for expand, width, count, stride in self.STAGES:
            blocks = []
            for number in range(count):
                d_out = int(width * factor)
                blocks.append(InvertedResidual(d_in, d_out, 1 if number else stride, expand))
                d_in = d_out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(conv(d_in, last, 1), nn.BatchNorm2d(last), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))

    def maps(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        for stage in self.blocks:
            x = stage(x)
        out: Tensor = self.conv2(x)
        return out


def basic(depth: int, factor: int, num_classes: int) -> ResNet:
    """A ResNet of three stages, `factor` times as wide as of 16 channels; the `x4` ones begin with 32."""
    first = 32 if factor == 4 else 16
    widths = (first, 16 * factor, 32 * factor, 64 * factor)
    return ResNet(widths, ((depth - 2) // 6,) * 3, num_classes, bottleneck=False)


# By name, what builds a network for so many classes.
NETWORKS: dict[str, Callable[..., Any]] = {
    **{f"cifar_resnet{d}": partial(basic, d, 1) for d in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{d}x4": partial(basic, d, 4) for d in (8, 32)},
    "cifar_resnet50": partial(ResNet, (64, 64, 128, 256, 512), (3, 4, 6, 3), bottleneck=True),
    **{f"cifar_wrn_{d}_{w}": partial(WideResNet, d, w) for d in (16, 40) for w in (1, 2)},
    "cifar_vgg8": partial(VGG, 1),
    "cifar_vgg13": partial(VGG, 2),
    "cifar_mobilenetv2": MobileNetV2,
    "cifar_shufflev1": ShuffleNetV1,
    "cifar_shufflev2": ShuffleNetV2,
}
