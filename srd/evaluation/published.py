"""The published value beside a measured one."""

from __future__ import annotations

from pathlib import Path

from srd.evaluation.accuracy import Accuracy
from srd.files.released import Released, released_as

IMAGENET_IMAGES, CLOSE = 50_000, 0.1  # validation images; percentage points


def reproduces(accuracy: Accuracy, released: Released) -> bool:
    """Whether top-1 on ImageNet's validation images is within 0.1 point of the published value."""
    same_images = accuracy.images == IMAGENET_IMAGES
    return same_images and abs(accuracy.acc1 - released.acc1) <= CLOSE + 1e-9


def compare(accuracy: Accuracy, released: Released, settings: str) -> str:
    """The published value, the difference, and a word: reproduced, or not and what to check.

    Args:
        settings: how the images were prepared here, for the check.
    """
    published, difference = f"{released.acc1:.2f}", f"{accuracy.acc1 - released.acc1:+.2f}"
    if released.acc5 is not None:
        published += f" / {released.acc5:.2f}"
        difference += f" / {accuracy.acc5 - released.acc5:+.2f}"
    line = f"reported by {released.reported_by}: {published}; difference {difference}: "
    if reproduces(accuracy, released):
        return line + f"reproduced (within {CLOSE} point)"
    check = f"check interpolation and crop (here {settings}) and the file"
    if accuracy.images != IMAGENET_IMAGES:
        check = (
            f"these are {accuracy.images} images, not the {IMAGENET_IMAGES} of ImageNet's; {check}"
        )
    return line + f"not reproduced: {check}"


def published_line(
    name: str,
    accuracy: Accuracy,
    *,
    num_classes: int,
    settings: str,
    file: Path | None = None,
) -> str | None:
    """`compare` with what was published for `name` (or for the file), where the data may be ImageNet."""
    released = released_as(name, file)
    if released is None or num_classes != 1000:
        return None
    return compare(accuracy, released, settings)
