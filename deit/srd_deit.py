# SPDX-License-Identifier: MIT
"""The student's architecture, alone: needs torch and timm, and nothing else of this project.

`import srd_deit` registers `srd_deit_tiny`, `srd_deit_small` and `srd_deit_base` with timm; every
exported folder carries a copy of this file. DeiT with a convolutional stem and a second,
convolutional, token: Co-Advise (CVPR 2022) proposed it, "Understanding the Role of the Projector
in Knowledge Distillation" (AAAI 2024) distils into it, and the state-dict names are those of its
released weights. Everything that is a plain vision transformer is timm's.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# name: (width, heads); MLP ratio 4 and what follows for all
SIZES: dict[str, tuple[int, int]] = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
PREFIX = "srd_deit_"  # of timm's names
PATCH = 16
DEPTH = 12
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

    img_size: tuple[int, int]
    grid_size: tuple[int, int]
    num_patches: int

    def __init__(self, img_size: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        self.set_input_size(img_size)
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

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """Images of another size from now on: pixels, or (height, width) of a square; None: as now."""
        if img_size is None:
            img_size = self.img_size
        height, width = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
        if patch_size not in (None, PATCH, (PATCH, PATCH)) or height != width or height % PATCH:
            raise ValueError(
                f"images of {height}x{width} in patches of {patch_size or PATCH}: this model reads "
                f"square images, sides a multiple of {PATCH}"
            )
        self.img_size, self.grid_size = (height, width), (height // PATCH, width // PATCH)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches in an image."""
        return img_size[0] // PATCH, img_size[1] // PATCH

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x)).flatten(2).transpose(1, 2)


class ConvStemDeiT(VisionTransformer):
    """timm's vision transformer on [class token, mean of the patch tokens, patch tokens].

    Training returns a `StudentOutput`; evaluation the mean of the two heads' logits, (B, C).

    Args:
        width, heads: of the transformer.
        num_classes: C; 0 for no heads (evaluation then returns the mean of the two tokens).
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
            depth=DEPTH,
            num_heads=heads,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            drop_path_rate=drop_path,
            embed_layer=ConvStem,
        )
        self.conv_embed: Any = self._modules.pop("patch_embed")  # the released name
        self.num_prefix_tokens = 2
        self.pos_embed = nn.Parameter(torch.zeros(1, self.conv_embed.num_patches + 2, width))
        self.head_conv = self._new_head(num_classes)
        self.conv_embed.reset_convolutions()
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        if num_classes > 0:
            trunc_normal_(self.head_conv.weight, std=0.02)
            nn.init.zeros_(self.head_conv.bias)

    @property
    def patch_embed(self) -> Any:
        """The stem, as timm calls it."""
        return self.conv_embed

    @property
    def image_size(self) -> int:
        """Pixels, square."""
        return int(self.conv_embed.img_size[0])

    def _new_head(self, num_classes: int) -> Any:
        return nn.Linear(self.embed_dim, num_classes) if num_classes > 0 else nn.Identity()

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """Both heads, as timm's distilled models do."""
        return self.head, self.head_conv

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads for other classes; the pooling is the tokens' and cannot be changed."""
        self.num_classes = num_classes
        self.head, self.head_conv = self._new_head(num_classes), self._new_head(num_classes)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patches (B, N, width) to tokens (B, 2 + N, width) with their positions."""
        class_token = self.cls_token.expand(x.shape[0], -1, -1)
        tokens = torch.cat((class_token, x.mean(dim=1, keepdim=True), x), dim=1)
        return self.pos_drop(tokens + self.pos_embed)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens (B, 2 + N, width) to logits (B, C), or to the distilled features (B, width)."""
        if pre_logits:
            return x[:, 2:].mean(dim=1)
        return (self.head(x[:, 0]) + self.head_conv(x[:, 1])) / 2

    def forward(self, x: Tensor, **_: Any) -> StudentOutput | Tensor:
        tokens = self.forward_features(x)
        if not self.training:
            return self.forward_head(tokens)
        logits, conv_logits = self.head(tokens[:, 0]), self.head_conv(tokens[:, 1])
        return StudentOutput(logits, conv_logits, tokens[:, 2:].mean(dim=1))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: ConvStemDeiT) -> dict[str, Tensor]:
    """Weights with their positions resized to the model's image size; timm calls it when it loads."""
    positions = state_dict.get("pos_embed")
    if positions is None or positions.shape[1] == model.pos_embed.shape[1]:
        return state_dict
    grid = list(model.conv_embed.grid_size)
    resized = resample_abs_pos_embed(positions, grid, num_prefix_tokens=2)
    return {**state_dict, "pos_embed": resized}


# What the released weights were trained and evaluated with; an exported folder says its own.
default_cfgs = generate_default_cfgs(
    {
        PREFIX + size: {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.875,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv_embed.conv.0",
            "classifier": ("head", "head_conv"),
        }
        for size in SIZES
    }
)


def _for_timm(
    width: int,
    heads: int,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] = 224,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
) -> ConvStemDeiT:
    """The model from timm's names of the arguments; pixels must be square and in three channels."""
    height, breadth = (img_size, img_size) if isinstance(img_size, int) else img_size
    if in_chans != 3 or height != breadth or height < PATCH or height % PATCH:
        raise ValueError(
            f"{in_chans} channels of {height}x{breadth} pixels: this model reads 3 channels of "
            f"square images, sides a multiple of {PATCH}"
        )
    return ConvStemDeiT(width, heads, num_classes, height, drop_path_rate)


def _build(name: str, pretrained: bool, **kwargs: Any) -> ConvStemDeiT:
    width, heads = SIZES[name.removeprefix(PREFIX)]
    return build_model_with_cfg(
        partial(_for_timm, width, heads),
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def srd_deit_tiny(pretrained: bool = False, **kwargs: Any) -> ConvStemDeiT:
    """Width 192, 3 heads."""
    return _build("srd_deit_tiny", pretrained, **kwargs)


@register_model
def srd_deit_small(pretrained: bool = False, **kwargs: Any) -> ConvStemDeiT:
    """Width 384, 6 heads."""
    return _build("srd_deit_small", pretrained, **kwargs)


@register_model
def srd_deit_base(pretrained: bool = False, **kwargs: Any) -> ConvStemDeiT:
    """Width 768, 12 heads."""
    return _build("srd_deit_base", pretrained, **kwargs)
