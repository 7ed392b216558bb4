"""What is left to do with a training view where its batch is: numbers of bytes, then erased boxes.

Workers hand over bytes, a quarter of float32's memory. What is erased is drawn where the view is, by
timm's own code, so that a view stays a function of its key; only the arithmetic is done later, the same
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torchvision.transforms import Compose, Normalize
from torchvision.transforms.functional import pil_to_tensor


class Box(NamedTuple):
    """A part of an image, and the normalised values (3, height, width) that take its place."""

    top: int
    left: int
    values: Tensor


class Unfinished(NamedTuple):
    """A view before its numbers are normalised: (3, H, W) uint8, and what is erased after."""

    pixels: Tensor
    erased: tuple[Box, ...] = ()


class Boxes(NamedTuple):
    """The boxes of a batch: (N, 5) int64 image, top, left, height, width; and all values in a row."""

    places: Tensor
    values: Tensor


@dataclass(frozen=True)
class Finish:
    """From bytes (B, 3, H, W) to normalised float32 images, as ToTensor and Normalize do."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, boxes: Boxes | None) -> Tensor:
        """Images in float32 where `pixels` are; boxes are erased in their order."""
        most, mean, std = (_there(v, pixels.device) for v in ((255.0,), self.mean, self.std))
        images = pixels.to(torch.float32).div_(most).sub_(mean).div_(std)
        if boxes is not None and len(boxes.places):
            places = boxes.places.tolist()
            channels = images.shape[1]
            sizes = [channels * height * width for *_, height, width in places]
            parts = boxes.values.to(pixels.device, non_blocking=True).split(sizes)
            for (image, top, left, height, width), part in zip(places, parts, strict=True):
                box = images[image, :, top : top + height, left : left + width]
                box.copy_(part.view(channels, height, width))
        return images


@cache
def _there(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1) on the device once: a copy from the host would wait for all that is under way.

    GPUs divide by tensors exactly, and by a number of the host's by multiplying with its inverse.
    """
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def leave_unfinished(
    transform: Any, *, fast: bool = False
) -> tuple[Callable[[Any], Any], Finish | None]:
    """timm's training transform up to the bytes, and what finishes them.

    Where it does not end with numbers, their normalisation, and perhaps erasing, all of it, and None.

    Args:
        fast: it reads an `Encoded`, by `srd.data.fast_views`.
    """
    steps = list(transform.transforms) if isinstance(transform, Compose) else []
    erasing = steps.pop() if steps and isinstance(steps[-1], RandomErasing) else None
    if [type(step) for step in steps[-2:]] != [MaybeToTensor, Normalize]:
        return transform, None
    finish = Finish(tuple(map(float, steps[-1].mean)), tuple(map(float, steps[-1].std)))
    if fast:
        from srd.data.fast_views import as_tensor, check_installed, fast_steps

        check_installed()
        return _UpToBytes([*fast_steps(steps[:-2]), as_tensor], erasing), finish
    return _UpToBytes([*steps[:-2], _in_bytes], erasing), finish


def _in_bytes(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).contiguous()


class _UpToBytes:
    """Steps from a picture to bytes (3, H, W), and what is erased of them."""

    def __init__(self, steps: list[Any], erasing: RandomErasing | None) -> None:
        self.steps, self.erasing = steps, erasing

    def __call__(self, pixels: Any) -> Unfinished:
        for step in self.steps:
            pixels = step(pixels)
        drawn = _Drawn(pixels.shape)
        if self.erasing is not None:
            self.erasing(drawn)
        return Unfinished(pixels, tuple(drawn.boxes))


class _Drawn:
    """Stands in for an image that boxes are written into: it remembers them."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.boxes: list[Box] = []

    def size(self) -> torch.Size:
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], values: Tensor) -> None:
        _, rows, columns = place
        shape = (self.shape[0], rows.stop - rows.start, columns.stop - columns.start)
        self.boxes.append(Box(rows.start, columns.start, values.expand(shape)))


def gather(erased: Sequence[tuple[Box, ...]]) -> Boxes:
    """The boxes of a batch's views."""
    boxes = [(number, box) for number, view in enumerate(erased) for box in view]
    places = [(number, box.top, box.left, *box.values.shape[1:]) for number, box in boxes]
    values = [box.values.reshape(-1) for _, box in boxes]
    return Boxes(
        torch.tensor(places, dtype=torch.long).reshape(-1, 5),
        torch.cat(values) if values else torch.empty(0),
    )
