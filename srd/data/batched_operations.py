"""timm's augmentations on batches of bytes (k, 3, H, W), by torch, on whatever device the batch is.

A worker draws what becomes of its view (`srd.data.planned`); here the views of a batch that share an
operation go through it together. Nothing waits for the device: which images a group has, and how many, is
known where the batch was made.

The arithmetic is Pillow's, in its order. What looks values up or blends them gives its bits; what moves
pixels interpolates as Pillow does (a cubic with -1 at its outer slope), in float32 where it takes float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Drawn(NamedTuple):
    """One operation of a view: its name in `OPERATIONS`, and the numbers that it takes."""

    name: str
    numbers: tuple[float, ...] = ()


class Operations(NamedTuple):
    """Those of a batch, in the order in which they run.

    Args:
        groups: name and number of images of each.
        rows: (M, 10) float64: image, and nine numbers; the groups one after the other.
    """

    groups: list[tuple[str, int]]
    rows: Tensor


NUMBERS = 9  # an affine map, and a colour


def gather_operations(drawn: Sequence[Sequence[Drawn]]) -> Operations:
    """The operations of a batch's views: of all the first ones by name, then of the second ones."""
    grouped: dict[tuple[int, str], list[list[float]]] = {}
    for image, operations in enumerate(drawn):
        for layer, (name, numbers) in enumerate(operations):
            row = [image, *numbers, *[0.0] * (NUMBERS - len(numbers))]
            grouped.setdefault((layer, name), []).append(row)
    groups = sorted(grouped)
    rows = [row for group in groups for row in grouped[group]]
    return Operations(
        [(name, len(grouped[layer, name])) for layer, name in groups],
        torch.tensor(rows, dtype=torch.float64).reshape(-1, 1 + NUMBERS),
    )


def augmented(pixels: Tensor, operations: Operations) -> Tensor:
    """Bytes (B, 3, H, W) after their operations; `pixels` stay as they are."""
    rows = operations.rows.to(pixels.device, non_blocking=True)
    images, places = pixels.clone(), rows[:, 0].long()
    sizes = [size for _, size in operations.groups]
    groups = zip(operations.groups, rows[:, 1:].split(sizes), places.split(sizes), strict=True)
    for (name, _), numbers, place in groups:
        images.index_copy_(0, place, OPERATIONS[name](images.index_select(0, place), numbers))
    return images


# Each takes images (k, 3, H, W) uint8 and the numbers (k, 9) float64 of each, and returns such images.


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    low, high = (end(dim=(2, 3)).double()[..., None] for end in (images.amin, images.amax))
    span = (high - low).clamp(min=1)
    scale = torch.full_like(span, 255) / span  # a number's division would be by the inverse
    tables = (_ramp(images).double() * scale + -low * scale).clamp(0, 255)
    return _looked_up(images, torch.where(high > low, tables, _ramp(images)))


def equalize(images: Tensor, _: Tensor) -> Tensor:
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, values, torch.ones_like(values))
    last = counts.gather(2, values.amax(dim=2, keepdim=True))
    step = (values.shape[2] - last) // 255
    below = counts.cumsum(dim=2) - counts
    tables = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return _looked_up(images, torch.where(step > 0, tables, _ramp(images)))


def invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def solarize(images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers: from which value on."""
    return torch.where(images < _nth(numbers, 0), images, 255 - images)


def solarize_add(images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers: what is added, and below which value."""
    more = (images + _nth(numbers, 0).int()).clamp(0, 255).to(torch.uint8)
    return torch.where(images < _nth(numbers, 1), more, images)


def posterize(images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers: the bits that are kept, as a mask."""
    return images & _nth(numbers, 0).to(torch.uint8)


def brightness(images: Tensor, numbers: Tensor) -> Tensor:
    return _blended(torch.zeros_like(images), images, numbers)


def contrast(images: Tensor, numbers: Tensor) -> Tensor:
    grey = _grey(images)
    size = grey[0].numel()
    mean = (2 * grey.sum(dim=(2, 3), keepdim=True) + size) // (2 * size)  # to the nearest
    return _blended(mean, images, numbers)


def color(images: Tensor, numbers: Tensor) -> Tensor:
    return _blended(_grey(images), images, numbers)


def sharpness(images: Tensor, numbers: Tensor) -> Tensor:
    smooth = images.clone()  # Pillow leaves the edges as they are
    if min(images.shape[2:]) >= 3:
        # 5 thirteenths of a pixel, and one of each neighbour; rounded, which no half ever asks
        inner = smooth[..., 1:-1, 1:-1]
        total = F.avg_pool2d(images.float(), 3, stride=1, divisor_override=1) + 4 * inner.float()
        inner.copy_((total / 13 + 0.5).floor())
    return _blended(smooth, images, numbers)


def move(images: Tensor, numbers: Tensor, *, axes: str, cubic: bool) -> Tensor:
    """Numbers: where pixels come from (a x + b y + c, d x + e y + f), and the colour of what is outside.

    Places are counted from the corner of the image, so that the first pixel's middle is 0.5.

    Args:
        axes: along which pixels move; along the other one they come from their own places.
    """
    count, channels, height, width = images.shape
    a, b, c, d, e, f = numbers[:, :6].reshape(-1, 6, 1, 1).unbind(dim=1)
    columns, rows = (torch.arange(n, device=images.device) for n in (width, height))
    x, y = columns.double() + 0.5, rows.double()[:, None] + 0.5
    across, down = a * x + b * y + c, d * x + e * y + f
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    here = torch.ones((), device=images.device)
    from_columns = _near(across, width, cubic=cubic) if "x" in axes else [(columns, here)]
    from_rows = _near(down, height, cubic=cubic) if "y" in axes else [(rows[:, None], here)]
    first = torch.arange(count, device=images.device).view(-1, 1, 1) * (height * width)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).float()
    total = torch.zeros_like(pixels)
    for row, of_row in from_rows:
        row = first + row * width
        for column, of_column in from_columns:
            seen = pixels.index_select(0, (row + column).view(-1))
            total.addcmul_(seen, (of_row * of_column).view(-1, 1))
    # Pillow cuts the fraction off, which is none for equal neighbours.
    moved = (total + ROUNDING).clamp(0, 255).to(torch.uint8)
    moved = moved.view(count, height, width, channels).permute(0, 3, 1, 2)
    return torch.where(inside[:, None], moved, numbers[:, 6:, None, None].to(torch.uint8))


ROUNDING = 1 / 1024  # more than float32 loses in a sum of neighbours

OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    operation.__name__: operation
    for operation in (
        auto_contrast, equalize, invert, solarize, solarize_add, posterize, brightness, contrast,
        color, sharpness,
    )
} | {
    f"bi{mode}_{axes}": partial(move, axes=axes, cubic=mode == "cubic")
    for axes in ("x", "y", "xy")
    for mode in ("linear", "cubic")
}  # fmt: skip


def _nth(numbers: Tensor, place: int) -> Tensor:
    """(k, 1, 1, 1) float32: a number of each image."""
    return numbers[:, place].float().view(-1, 1, 1, 1)


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """By a table (k, 3, 256) for each channel of each image."""
    values = images.flatten(2).long()
    return tables.to(torch.uint8).gather(2, values).view(images.shape)


def _grey(images: Tensor) -> Tensor:
    """(k, 1, H, W) int32: ITU-R 601-2's luma, as Pillow rounds it for its mode L."""
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def _blended(other: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers: how much of the image; beyond 1, further away from the other. In float32, cut off."""
    other = other.float()
    return ((images - other) * _nth(numbers, 0) + other).clamp(0, 255).to(torch.uint8)


def _near(places: Tensor, size: int, *, cubic: bool) -> list[tuple[Tensor, Tensor]]:
    """The neighbours of places along a side, and what each weighs; the edges go on outside."""
    first = (places - 0.5).floor()
    d = (places - 0.5 - first).float()
    e = 1 - d
    weights = {0: e, 1: d}
    if cubic:
        weights = {
            -1: -d * e * e,
            0: 1 - 2 * d * d + d * d * d,
            1: 1 - 2 * e * e + e * e * e,
            2: -e * d * d,
        }
    return [((first.long() + n).clamp(0, size - 1), weight) for n, weight in weights.items()]
