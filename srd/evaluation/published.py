"""The published value beside a measured one."""

from __future__ import annotations

from srd.evaluation.accuracy import Accuracy
from srd.files.released import Released

IMAGENET_IMAGES, CLOSE = 50_000, 0.1  # validation images; percentage points


def reproduces(found: Accuracy, one: Released) -> bool:
    """Whether top-1 on ImageNet's validation images is within 0.1 point of the published value."""
    return found.images == IMAGENET_IMAGES and abs(found.acc1 - one.acc1) <= CLOSE + 1e-9


def beside(found: Accuracy, one: Released, settings: str) -> str:
    """The published value, the difference, and a word: reproduced, or not and what to check.

    Args:
        settings: how the images were prepared here, for the check.
    """
    published, difference = f"{one.acc1:.2f}", f"{found.acc1 - one.acc1:+.2f}"
    if one.acc5 is not None:
        published += f" / {one.acc5:.2f}"
        difference += f" / {found.acc5 - one.acc5:+.2f}"
    told = f"reported by {one.reported_by}: {published}; difference {difference}: "
    if reproduces(found, one):
        return told + f"reproduced (within {CLOSE} point)"
    check = f"check interpolation and crop (here {settings}) and the file"
    if found.images != IMAGENET_IMAGES:
        check = (
            f"these are {found.images} images, not the {IMAGENET_IMAGES} of ImageNet's; " + check
        )
    return told + f"not reproduced: {check}"
