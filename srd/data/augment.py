"""What a training image goes through: timm's transform, mixup and cutmix."""

from __future__ import annotations

from functools import partial
from typing import Any

from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from torch import Tensor
from torchvision import transforms

from srd.config.fields import Augment, Data
from srd.data.image_source import in_mode
from srd.data.views import MIX, seeded
from srd.errors import UserError


def train_transform(augment: Augment, data: Data, image_size: int) -> Any:
    """timm's training transform: PIL image to a normalised (C, H, W) tensor."""
    if augment.rand_augment:
        _check_pillow()
        if data.mode == "RGBA":
            raise UserError(
                "augment.rand_augment has steps that know no opacity: with model.in_chans 4, set "
                "augment.rand_augment to ''"
            )
    try:
        transform = create_transform(
            image_size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            interpolation=augment.interpolation,
            hflip=augment.flip,
            auto_augment=augment.rand_augment or None,
            color_jitter=augment.color_jitter or None,
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
            re_count=augment.erase_count,
            mean=data.mean,
            std=data.std,
        )
    except (AssertionError, ValueError, NotImplementedError):
        raise UserError(
            f"augment.rand_augment {augment.rand_augment!r} is not one of timm's policies, such as "
            "'rand-m9-mstd0.5-inc1' (empty: none)"
        ) from None
    if augment.crop_padding is not None:
        transform.transforms[0] = transforms.Compose(
            [transforms.Resize(image_size), transforms.RandomCrop(image_size, augment.crop_padding)]
        )
    if data.mode != "RGB":
        transform.transforms.insert(0, partial(in_mode, mode=data.mode))
    return transform


def _check_pillow() -> None:
    """timm's RandAugment posterises to 0 bits now and then; Pillow 13 and newer refuse that."""
    try:
        ImageOps.posterize(Image.new("RGB", (1, 1)), 0)
    except ValueError:
        raise UserError(
            "this Pillow cannot run timm's RandAugment: pip install 'pillow<13'"
        ) from None


class Mix:
    """timm's mixup and cutmix, drawn from (seed, step): the same on every process.

    Without either, class indices pass through and the loss smooths them.

    Args:
        repeat: the number of steps after which the draws repeat; None: never.
    """

    def __init__(
        self, augment: Augment, *, num_classes: int, seed: int, repeat: int | None = None
    ) -> None:
        self.seed, self.repeat = seed, repeat
        self.mixup: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_probability,
                switch_prob=augment.mix_switch,
                label_smoothing=augment.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and (B,) to mixed images and (B, C) targets; images are changed in place."""
        if self.mixup is None:
            return images, targets
        with seeded(MIX, self.seed, step % self.repeat if self.repeat else step):
            mixed: tuple[Tensor, Tensor] = self.mixup(images, targets)
        return mixed
