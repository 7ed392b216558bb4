"""The paper's students by name. Their architecture, which travels alone, is in `deit/srd_deit.py`."""

from __future__ import annotations

from deit.srd_deit import PATCH, SIZES, ConvStemDeiT, StudentOutput
from srd.errors import UserError, nearest

__all__ = ["PATCH", "SIZES", "ConvStemDeiT", "StudentOutput", "create_student"]


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
