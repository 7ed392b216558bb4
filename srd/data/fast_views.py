"""The fast path of training pictures (`data.pixels: fast`): the released steps' draws, other arithmetic.

Every draw is made by the released step's own code, in the released order, so a key gives the same crop,
flip, operations with strengths and erasing on both paths. JPEG files are decoded by simplejpeg, from which
the crop is cut and resized on bytes by torch; flips and RandAugment are OpenCV's. What has no fast
counterpart runs as it is released, on Pillow's image.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from srd.data.encoded import Encoded
from srd.data.image_source import BROKEN_IMAGE, DamagedPicture, one_line
from srd.data.picture_costs import TooLarge
from srd.installed import need_extra

Step = Any  # a callable, perhaps with settings
RESIZES = {InterpolationMode.BILINEAR: "bilinear", InterpolationMode.BICUBIC: "bicubic"}
CROPS = (RandomResizedCropAndInterpolation, transforms.RandomResizedCrop)


def check_installed() -> None:
    """Raise a UserError unless what the fast path needs is there."""
    need_extra("fast", "simplejpeg", "cv2", what="fast pixels")


def fast_steps(steps: Sequence[Step]) -> list[Step]:
    """Steps from a PIL image to a PIL image as steps from an `Encoded` (or PIL image) to bytes.

    Returns:
        The last gives (H, W, 3) uint8.
    """
    first, *others = steps
    fast = type(first) in CROPS and RESIZES.keys() >= {*_modes(first)}
    return [Crop(first) if fast else Released(first), *map(_fast, others)]


def _modes(crop: Any) -> tuple[Any, ...]:
    """The interpolations of which a crop takes one."""
    modes = crop.interpolation
    return tuple(modes) if isinstance(modes, (list, tuple)) else (modes,)


def _fast(step: Step) -> Step:
    """A step on bytes."""
    from srd.data.fast_operations import on_pillow

    if type(step) is transforms.RandomHorizontalFlip:
        return Flip(step.p)
    if type(step) is RandAugment:
        operations = np.array([_operation(o) for o in step.ops], dtype=object)  # as it draws from
        return RandAugment(operations, step.num_layers, step.choice_weights)
    if type(step) is AutoAugment:
        return AutoAugment([[_operation(o) for o in policy] for policy in step.policy])
    return on_pillow(step)


def _operation(operation: AugmentOp) -> AugmentOp:
    """timm's operation, which draws its strength, on bytes."""
    from srd.data.fast_operations import OPERATIONS, on_pillow

    own = copy.copy(operation)
    own.aug_fn = OPERATIONS.get(operation.aug_fn) or on_pillow(operation.aug_fn)
    return own


class Released:
    """A step as it is released, at the start: from the whole picture."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, picture: Encoded | Image.Image) -> np.ndarray:
        image = decoded(lambda: picture.image) if isinstance(picture, Encoded) else picture
        return np.asarray(self.step(image))


class Outline(Image.Image):
    """All that the draws of a crop see of a picture."""

    mode, size = "RGB", (0, 0)

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height


class Crop:
    """A random part of a picture in another size: timm's, or torchvision's.

    Raises:
        DamagedPicture: the pixels cannot be decoded. TooLarge: the picture.
    """

    def __init__(self, step: Any) -> None:
        self.step, self.size, self.modes = step, tuple(step.size), _modes(step)

    def __call__(self, picture: Encoded | Image.Image) -> np.ndarray:
        if isinstance(picture, Encoded):
            height, width = decoded(picture.size)
        else:
            width, height = picture.size
        box, mode = self.draw(height, width)
        if isinstance(picture, Encoded):
            pixels, scale = decoded(lambda: picture.pixels(box, self.size))
        else:
            pixels, scale = np.asarray(picture), 1
        return resized(pixels, box, scale, self.size, mode)

    def draw(self, height: int, width: int) -> tuple[tuple[int, ...], str]:
        """Top, left, height and width of a part, and how it is resized."""
        like = Outline(width, height)
        box = self.step.get_params(like, self.step.scale, self.step.ratio)
        several = isinstance(self.step.interpolation, (list, tuple))  # of which timm draws one
        mode = random.choice(self.modes) if several else self.modes[0]
        return tuple(box), RESIZES[mode]


def resized(
    pixels: np.ndarray, box: tuple[int, ...], scale: int, size: tuple[int, ...], mode: str
) -> np.ndarray:
    """A part of (H, W, 3) bytes in another size, antialiased.

    Args:
        box: top, left, height and width in the picture, whose sides were divided by `scale`.
        mode: of `RESIZES`.
    """
    top, left, height, width = box
    if height == 0 or width == 0:  # of a picture of a few pixels: Pillow enlarges nothing to black
        return np.zeros((*size, 3), dtype=np.uint8)
    if scale > 1:  # torch cuts between no pixels
        image = Image.fromarray(np.ascontiguousarray(pixels))
        right, bottom = ((left + width) / scale, (top + height) / scale)
        part = (left / scale, top / scale, min(right, image.width), min(bottom, image.height))
        return np.asarray(
            image.resize((size[1], size[0]), Image.Resampling[mode.upper()], box=part)
        )
    cut = np.array(pixels[top : top + height, left : left + width], order="C")
    # With its strides torch sees channels last, which is what its code for bytes takes.
    images = torch.from_numpy(cut.reshape(1, height, width, 3).transpose(0, 3, 1, 2))
    images = F.interpolate(images, size, mode=mode, antialias=True, align_corners=False)
    return images.numpy()[0].transpose(1, 2, 0)


class Flip:
    """torchvision's RandomHorizontalFlip."""

    def __init__(self, probability: float) -> None:
        self.probability = float(torch.tensor(probability))  # as torch compares it

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        import cv2

        return cv2.flip(pixels, 1) if self.draw() else pixels

    def draw(self) -> bool:
        """Whether it does."""
        return torch.rand(1).item() < self.probability


class Normalised:
    """ToTensor and Normalize on bytes (H, W, 3): their own numbers, looked up, as (3, H, W) float32."""

    def __init__(self, to_numbers: Step, normalize: Step | None) -> None:
        ramp = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 1, 3))
        numbers = to_numbers(Image.fromarray(ramp))
        self.tables = (normalize(numbers) if normalize else numbers).squeeze(2).numpy()

    def __call__(self, pixels: np.ndarray) -> Tensor:
        import cv2

        from srd.data.fast_operations import planes

        numbers = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for part, table, own in zip(planes(pixels), self.tables, numbers, strict=True):
            cv2.LUT(part, table, dst=own)
        return torch.from_numpy(numbers)


def as_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) bytes as (3, H, W), in one piece."""
    from srd.data.fast_operations import planes

    return torch.from_numpy(planes(pixels))


def decoded(decode: Callable[[], Any]) -> Any:
    """What `decode` returns; faults of the picture become a DamagedPicture."""
    try:
        return decode()
    except (TooLarge, MemoryError):
        raise
    except BROKEN_IMAGE as error:
        raise DamagedPicture(one_line(error)) from error
