"""What is left to do with a training view where its batch is: pixels, operations, numbers, erased boxes.

Workers hand over bytes, a quarter of float32's memory. What is erased is drawn where the view is, by
timm's own code, so that a view stays a function of its key; only the arithmetic is done later, the same
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybeToTensor
from torch import Tensor
from torchvision.transforms import Compose, Normalize
from torchvision.transforms.functional import pil_to_tensor

from srd.data.batched_operations import Drawn, Operations, augmented, gather_operations

if TYPE_CHECKING:
    from srd.data.planned import Policy
    from srd.data.undecoded import Files, Undecoded


class Box(NamedTuple):
    """A part of an image, and the normalised values (3, height, width) that take its place."""

    top: int
    left: int
    values: Tensor


class Unfinished(NamedTuple):
    """A view before its numbers are normalised: (3, H, W) uint8, and what follows.

    Args:
        pixels: or what they are decoded from.
        drawn: operations on its bytes.
        erased: once it is normalised.
    """

    pixels: Tensor | Undecoded
    drawn: tuple[Drawn, ...] = ()
    erased: tuple[Box, ...] = ()


class Boxes(NamedTuple):
    """The boxes of a batch: (N, 5) int64 image, top, left, height, width; and all values in a row."""

    places: Tensor
    values: Tensor


class Rest(NamedTuple):
    """What is left to do with a batch, in this order."""

    files: Files | None
    operations: Operations
    boxes: Boxes


@dataclass(frozen=True)
class Finish:
    """From bytes (B, 3, H, W) to normalised float32 images, as ToTensor and Normalize do."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor, rest: Rest | None) -> Tensor:
        """Images in float32 where `pixels` are; boxes are erased in their order.

        Raises:
            UserError: a file that was left to decode is damaged.
        """
        if rest is not None and rest.files is not None:
            from srd.data.undecoded import with_files

            pixels = with_files(pixels, rest.files)
        if rest is not None and rest.operations.groups:
            pixels = augmented(pixels, rest.operations)
        most, mean, std = (_there(v, pixels.device) for v in ((255.0,), self.mean, self.std))
        images = pixels.to(torch.float32).div_(most).sub_(mean).div_(std)
        if rest is not None and len(rest.boxes.places):
            places = rest.boxes.places.tolist()
            channels = images.shape[1]
            sizes = [channels * height * width for *_, height, width in places]
            parts = rest.boxes.values.to(pixels.device, non_blocking=True).split(sizes)
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
    transform: Any, pixels: str = "released", *, undecoded: bool = False
) -> tuple[Callable[[Any], Any], Finish | None]:
    """timm's training transform up to the bytes, and what finishes them.

    Where it does not end with numbers, their normalisation, and perhaps erasing, all of it, and None.

    Args:
        pixels: the path. On all but `released` it reads an `Encoded`, by `srd.data.fast_views`; on
            `device` RandAugment's or AutoAugment's operations are left too, where nothing follows them.
        undecoded: on `device`, JPEG files are left to decode too, where all steps allow it.
    """
    steps = list(transform.transforms) if isinstance(transform, Compose) else []
    erasing = steps.pop() if steps and isinstance(steps[-1], RandomErasing) else None
    if [type(step) for step in steps[-2:]] != [MaybeToTensor, Normalize]:
        return transform, None
    finish = Finish(tuple(map(float, steps[-1].mean)), tuple(map(float, steps[-1].std)))
    pictures, policy = steps[:-2], None
    if pixels == "released":
        return _UpToBytes([*pictures, _in_bytes], policy, erasing), finish
    from srd.data.fast_views import as_tensor, check_installed, fast_steps

    check_installed()
    if pixels == "device":
        from srd.data.planned import planned

        policy = planned(pictures[-1])
    early = [*fast_steps(pictures[:-1] if policy else pictures), as_tensor]
    if undecoded:
        from srd.data.undecoded import decode_later

        early = decode_later(early)
    return _UpToBytes(early, policy, erasing), finish


def _in_bytes(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).contiguous()


class _UpToBytes:
    """Steps from a picture to bytes (3, H, W), and what is left to do with them."""

    def __init__(
        self, steps: list[Any], policy: Policy | None, erasing: RandomErasing | None
    ) -> None:
        self.steps, self.policy, self.erasing = steps, policy, erasing

    def __call__(self, pixels: Any) -> Unfinished:
        for step in self.steps:
            pixels = step(pixels)
        drawn = self.policy(*pixels.shape[1:]) if self.policy else ()
        boxes = _Boxes(pixels.shape)
        if self.erasing is not None:
            self.erasing(boxes)
        return Unfinished(pixels, drawn, tuple(boxes.drawn))


class _Boxes:
    """Stands in for an image that boxes are written into: it remembers them."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.drawn: list[Box] = []

    def size(self) -> torch.Size:
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], values: Tensor) -> None:
        _, rows, columns = place
        shape = (self.shape[0], rows.stop - rows.start, columns.stop - columns.start)
        self.drawn.append(Box(rows.start, columns.start, values.expand(shape)))


def gather(
    images: Sequence[Tensor | Undecoded],
    drawn: Sequence[tuple[Drawn, ...]],
    erased: Sequence[tuple[Box, ...]],
) -> Rest:
    """What is left to do with a batch, of what is left to do with its views."""
    return Rest(_gather_files(images), gather_operations(drawn), _gather_boxes(erased))


def _gather_files(images: Sequence[Tensor | Undecoded]) -> Files | None:
    if all(isinstance(image, Tensor) for image in images):
        return None
    from srd.data.undecoded import gather_files

    return gather_files(images)


def _gather_boxes(erased: Sequence[tuple[Box, ...]]) -> Boxes:
    boxes = [(number, box) for number, view in enumerate(erased) for box in view]
    places = [(number, box.top, box.left, *box.values.shape[1:]) for number, box in boxes]
    values = [box.values.reshape(-1) for _, box in boxes]
    return Boxes(
        torch.tensor(places, dtype=torch.long).reshape(-1, 5),
        torch.cat(values) if values else torch.empty(0),
    )
