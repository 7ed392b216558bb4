"""What a picture goes through before a classifier sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform


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

    def __str__(self) -> str:
        mean, std = (
            ", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std)
        )
        return (
            f"{self.image_size}x{self.image_size} pixels, the shorter side resized to "
            f"{int(self.image_size / self.crop)} ({self.interpolation}), centre crop; mean {mean}, "
            f"standard deviation {std}"
        )

    def transform(self) -> Any:
        """PIL image (RGB) to a normalised (3, image_size, image_size) tensor: timm's."""
        return create_transform(
            self.image_size,
            interpolation=self.interpolation,
            crop_pct=self.crop,
            mean=self.mean,
            std=self.std,
        )
