"""What a picture goes through before a classifier sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from srd.config.fields import MODES
from srd.data.image_source import in_mode
from srd.data.picture_costs import TooLarge
from srd.errors import UserError
from srd.files.limits import LIMITS

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")  # timm's


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to image_size / crop, cut out the centre, normalise.

    The defaults are those of the released students' evaluation.
    """

    image_size: int = 224  # pixels, square
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    crop: float = 0.875
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Raise a UserError where a file gave numbers that no classifier has."""
        if type(self.image_size) is not int or not 0 < self.image_size <= LIMITS.image_size:
            raise UserError(f"its image size is none from 1 to {LIMITS.image_size:,} pixels")
        if not (0 < self.crop <= 1 and self.image_size / self.crop <= LIMITS.resized):
            raise UserError(
                f"its crop {self.crop:g} of {self.image_size} pixels is none: from 0 to 1, and images "
                f"are resized to at most {LIMITS.resized:,}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"its interpolation is none of {', '.join(INTERPOLATIONS)}")
        several = len(self.mean) == len(self.std) in MODES and all(
            map(math.isfinite, self.mean + self.std)
        )
        if not several or min(self.std) <= 0:
            raise UserError(
                "its mean and standard deviation are not three numbers (or one, or four), the latter "
                "above 0"
            )

    @property
    def channels(self) -> int:
        """Of a picture."""
        return len(self.mean)

    @property
    def mode(self) -> str:
        """Pillow's, of a picture."""
        return MODES[self.channels]

    def __str__(self) -> str:
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)
        )
        of_mode = "" if self.mode == "RGB" else f"{self.mode}, "
        return (
            f"{of_mode}{self.image_size}x{self.image_size} pixels, the shorter side resized to "
            f"{int(self.image_size / self.crop)} ({self.interpolation}), centre crop; mean {mean}, "
            f"standard deviation {std}"
        )

    def transform(self) -> Any:
        """PIL image to a normalised (channels, image_size, image_size) tensor: timm's.

        It raises `TooLarge` for a picture so long that it would be resized to immense ones.
        """
        transform: Any = create_transform(
            self.image_size,
            interpolation=self.interpolation,
            crop_pct=self.crop,
            mean=self.mean,
            std=self.std,
        )
        transform.transforms[:0] = [self.check_resized, partial(in_mode, mode=self.mode)]
        return transform

    def check_resized(self, image: Image.Image) -> Image.Image:
        """`image`, unless it has more pixels after the resize than a picture may have."""
        aspect = max(image.size) / min(image.size)
        if (self.image_size / self.crop) ** 2 * aspect > LIMITS.pixels:
            raise TooLarge(f"too long and narrow to be resized: {image.size[0]}x{image.size[1]}")
        return image
