"""The paper's students by name. Their architecture, which travels alone, is in `deit/srd_deit.py`."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from deit.srd_deit import PATCH, PREFIX, SIZES, ConvStemDeiT, StudentOutput
from srd.errors import UserError, nearest
from srd.models.outputs import Output
from srd.models.students import STUDENTS, Builder

__all__ = ["PATCH", "SIZES", "ConvStemDeiT", "StudentOutput", "create_student", "read"]


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
        raise UserError(
            f"the student {name} cannot read images of {image_size}x{image_size} pixels, only "
            f"multiples of {PATCH}: set --image-size {max(1, round(image_size / PATCH)) * PATCH}"
        )
    if num_classes < 0:
        raise UserError(f"a student has classes, or 0 for no head, not {num_classes}")
    width, heads = SIZES[name]
    return ConvStemDeiT(width, heads, num_classes, image_size, drop_path)


def read(model: ConvStemDeiT, images: Tensor, *, features: bool = True) -> Output:
    """What the student says of images (B, 3, H, W): in training the logits of both heads.

    The distilled features are the mean of the patch tokens after the last norm.
    """
    tokens = model.forward_features(images)
    if model.training:
        logits, conv_logits = model.head(tokens[:, 0]), model.head_conv(tokens[:, 1])
    else:
        logits, conv_logits = model.forward_head(tokens), None
    if not features:
        return Output(None, logits, conv_logits)
    return Output(model.forward_head(tokens, pre_logits=True), logits, conv_logits, tokens[:, 2:])


# Under timm's names too: there, timm alone would train the mean of the two heads.
for _name in SIZES:
    STUDENTS[_name] = STUDENTS[PREFIX + _name] = Builder(partial(create_student, _name), read)
