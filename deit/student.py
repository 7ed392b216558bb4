"""The student: DeiT with a convolutional stem and a second, convolutional, token.

Co-Advise (CVPR 2022) proposed it, the paper distils into it, and the state-dict names are those
of the released weights. Everything that is a plain vision transformer is timm's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from srd.errors import UserError, nearest

# name: (width, heads); depth 12, MLP ratio 4, patches of 16 for all
SIZES: dict[str, tuple[int, int]] = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
PATCH = 16
STEM_WIDTH = 64


class StudentOutput(NamedTuple):
    """What the losses need: class logits (B, C), conv-token logits (B, C), features (B, D)."""

    logits: Tensor
    conv_logits: Tensor
    features: Tensor


class ConvStem(nn.Module):
    """Three convolutions and a projection in the place of the patch embedding.

    Shapes: (B, 3, H, W) to (B, H/16 * W/16, width).
    """

    def __init__(self, img_size: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.num_patches = (img_size // PATCH) ** 2
        conv = partial(nn.Conv2d, out_channels=STEM_WIDTH, bias=False)
        self.conv = nn.Sequential(
            conv(3, kernel_size=7, stride=2, padding=3),
            nn.BatchNorm2d(STEM_WIDTH),
            nn.ReLU(inplace=True),
            conv(STEM_WIDTH, kernel_size=3, padding=1),
            nn.BatchNorm2d(STEM_WIDTH),
            nn.ReLU(inplace=True),
            conv(STEM_WIDTH, kernel_size=3, padding=1),
            nn.BatchNorm2d(STEM_WIDTH),
            nn.ReLU(inplace=True),
        )
        self.proj = nn.Conv2d(STEM_WIDTH, embed_dim, kernel_size=PATCH // 2, stride=PATCH // 2)

    def reset_convolutions(self) -> None:
        """Kaiming-normal weights for all four convolutions, as released."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x)).flatten(2).transpose(1, 2)


class ConvStemDeiT(VisionTransformer):
    """timm's vision transformer on [class token, mean of the patch tokens, patch tokens].

    Training returns a `StudentOutput`; evaluation the mean of the two heads' logits, (B, C).

    Args:
        width, heads: of the transformer.
        num_classes: C.
        image_size: pixels, a multiple of 16.
        drop_path: stochastic depth of the last block; 0 in the recipe.
    """

    def __init__(
        self, width: int, heads: int, num_classes: int, image_size: int, drop_path: float = 0.0
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=PATCH,
            num_classes=num_classes,
            embed_dim=width,
            num_heads=heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            drop_path_rate=drop_path,
            embed_layer=ConvStem,
        )
        self.conv_embed = self.patch_embed  # the released name
        del self.patch_embed
        self.num_prefix_tokens = 2
        self.image_size = image_size
        self.pos_embed = nn.Parameter(torch.zeros(1, self.conv_embed.num_patches + 2, width))
        self.head_conv = nn.Linear(width, num_classes)
        self.conv_embed.reset_convolutions()
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.head_conv.weight, std=0.02)
        nn.init.zeros_(self.head_conv.bias)

    def forward_features(self, x: Tensor, **_: Any) -> Tensor:
        """Images (B, 3, H, W) to normalised tokens (B, 2 + N, width)."""
        patches = self.conv_embed(x)
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat((class_token, patches.mean(dim=1, keepdim=True), patches), dim=1)
        return self.norm(self.blocks(self.pos_drop(tokens + self.pos_embed)))

    def forward(self, x: Tensor, **_: Any) -> StudentOutput | Tensor:
        tokens = self.forward_features(x)
        logits, conv_logits = self.head(tokens[:, 0]), self.head_conv(tokens[:, 1])
        if self.training:
            return StudentOutput(logits, conv_logits, tokens[:, 2:].mean(dim=1))
        return (logits + conv_logits) / 2


def create_student(
    name: str, num_classes: int = 1000, image_size: int = 224, drop_path: float = 0.0
) -> ConvStemDeiT:
    """The paper's student by name: `"tiny"`, `"small"` or `"base"`.

    Raises:
        UserError: an unknown name, no classes, or an image size that is not a multiple of 16.
    """
    if name not in SIZES:
        raise UserError(f"unknown model {name!r}{nearest(name, SIZES)}: one of {', '.join(SIZES)}")
    if image_size < PATCH or image_size % PATCH:
        raise UserError(f"image size {image_size} is not a multiple of {PATCH}")
    if num_classes < 1:
        raise UserError(f"a student needs at least one class, not {num_classes}")
    width, heads = SIZES[name]
    return ConvStemDeiT(width, heads, num_classes, image_size, drop_path)
