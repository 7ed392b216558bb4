"""timm's augmentations on bytes (H, W, 3): the same arguments, by OpenCV and look-up tables.

Each stands for the function of `timm.data.auto_augment` that `OPERATIONS` names. Tables give Pillow's
bits, or a step beside them; what moves pixels interpolates as Pillow does (a cubic with -1 at its outer
slope), but for a rotation, which is OpenCV's (-0.75).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timms

Pixels = NDArray[np.uint8]

VALUES: NDArray[np.float32] = np.arange(256, dtype=np.float32)
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # Pillow's
WHOLE = 64  # fractions of a pixel's weight, as integers
DOWN = -0.499  # OpenCV rounds to the nearest number, Pillow's blend rounds down

cv2.setNumThreads(1)  # a process for each core is there already; and threads do not survive a fork


def auto_contrast(pixels: Pixels, **_: Any) -> Pixels:
    tables = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    for table, plane in zip(tables, planes(pixels), strict=True):
        low, high = int(plane.min()), int(plane.max())
        if high > low:
            scale = 255.0 / (high - low)
            stretched = np.arange(256) * scale - low * scale
            table[:] = stretched.astype(np.int64).clip(0, 255)
    return by_channel(pixels, tables)


def equalize(pixels: Pixels, **_: Any) -> Pixels:
    tables = np.tile(np.arange(256, dtype=np.uint8), (3, 1))
    for table, plane in zip(tables, planes(pixels), strict=True):
        counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (plane.size - int(counts[np.flatnonzero(counts)[-1]])) // 255
        if step:
            below = np.cumsum(counts) - counts
            table[:] = np.minimum((below + step // 2) // step, 255)
    return by_channel(pixels, tables)


def invert(pixels: Pixels, **_: Any) -> Pixels:
    return cv2.bitwise_not(pixels)  # type: ignore[return-value]


def solarize(pixels: Pixels, thresh: int, **_: Any) -> Pixels:
    return by_table(pixels, np.where(thresh > VALUES, VALUES, 255 - VALUES))


def solarize_add(pixels: Pixels, add: int, thresh: int = 128, **_: Any) -> Pixels:
    return by_table(pixels, np.where(thresh > VALUES, np.minimum(VALUES + add, 255), VALUES))


def posterize(pixels: Pixels, bits_to_keep: int, **_: Any) -> Pixels:
    if bits_to_keep >= 8:
        return pixels
    return by_table(pixels, VALUES - VALUES % (1 << 8 - bits_to_keep))


def brightness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    return by_table(pixels, (VALUES * np.float32(factor)).clip(0, 255))


def contrast(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    mean = np.float32(int(cv2.mean(grey(pixels))[0] + 0.5))
    return by_table(pixels, (mean + np.float32(factor) * (VALUES - mean)).clip(0, 255))


def color(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    faded = cv2.cvtColor(grey(pixels), cv2.COLOR_GRAY2RGB)
    return blend(faded, pixels, factor)  # type: ignore[arg-type]


def desaturate(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    return color(pixels, min(1.0, max(0.0, 1.0 - factor)))


def sharpness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    smooth = cv2.filter2D(pixels, -1, SMOOTH)
    for edge in (0, -1):  # which Pillow leaves as it is
        smooth[edge], smooth[:, edge] = pixels[edge], pixels[:, edge]
    return blend(smooth, pixels, factor)  # type: ignore[arg-type]


def shear_x(pixels: Pixels, factor: float, **how: Any) -> Pixels:
    rows = np.arange(pixels.shape[0], dtype=np.float64)
    return moved(pixels, factor * (rows + 0.5), **how)


def shear_y(pixels: Pixels, factor: float, **how: Any) -> Pixels:
    return _on_its_side(shear_x, pixels, factor, **how)


def translate_x_rel(pixels: Pixels, pct: float, **how: Any) -> Pixels:
    return translate_x_abs(pixels, pct * pixels.shape[1], **how)


def translate_y_rel(pixels: Pixels, pct: float, **how: Any) -> Pixels:
    return _on_its_side(translate_x_rel, pixels, pct, **how)


def translate_x_abs(pixels: Pixels, distance: float, **how: Any) -> Pixels:
    return moved(pixels, np.full(pixels.shape[0], float(distance)), **how)


def translate_y_abs(pixels: Pixels, distance: float, **how: Any) -> Pixels:
    return _on_its_side(translate_x_abs, pixels, distance, **how)


def rotate(pixels: Pixels, degrees: float, *, resample: Any, fillcolor: Sequence[int]) -> Pixels:
    height, width = pixels.shape[:2]
    angle = -math.radians(degrees)
    a, b, d, e = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    # from the middle of a pixel to that of another; OpenCV counts from the middle of the first
    x, y = (width - 1) / 2, (height - 1) / 2
    matrix = np.array([[a, b, x - a * x - b * y], [d, e, y - d * x - e * y]])
    cubic = chosen(resample) == Image.Resampling.BICUBIC
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR)
    return cv2.warpAffine(  # type: ignore[return-value]
        pixels, matrix, (width, height), flags=flags, borderValue=[*fillcolor]
    )


OPERATIONS: dict[Callable[..., Any], Callable[..., Pixels]] = {
    getattr(timms, operation.__name__): operation
    for operation in (
        auto_contrast, equalize, invert, solarize, solarize_add, posterize, brightness, contrast,
        color, desaturate, sharpness, shear_x, shear_y, translate_x_rel, translate_y_rel,
        translate_x_abs, translate_y_abs, rotate,
    )
}  # fmt: skip


def on_pillow(step: Callable[..., Any]) -> Callable[..., Pixels]:
    """A step of the released path, for what has no faster one."""

    def run(pixels: Pixels, *arguments: Any, **named: Any) -> Pixels:
        return np.asarray(step(Image.fromarray(pixels), *arguments, **named))

    return run


def planes(pixels: Pixels) -> Pixels:
    """(H, W, 3) as (3, H, W), each in one piece."""
    parts = np.empty((3, *pixels.shape[:2]), dtype=np.uint8)
    cv2.split(pixels, [*parts])
    return parts


def grey(pixels: Pixels) -> Pixels:
    """(H, W): ITU-R 601-2's luma, which Pillow's mode L is."""
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)  # type: ignore[return-value]


def by_table(pixels: Pixels, table: NDArray[Any]) -> Pixels:
    """Each value in its place in a table of 256."""
    return cv2.LUT(pixels, table.astype(np.uint8))  # type: ignore[return-value]


def by_channel(pixels: Pixels, tables: Pixels) -> Pixels:
    """Likewise, by a table for each channel, (3, 256)."""
    parts = [cv2.LUT(part, table) for part, table in zip(planes(pixels), tables, strict=True)]
    return cv2.merge(parts)


def blend(ground: Pixels, pixels: Pixels, factor: float) -> Pixels:
    """From `ground` (0) over `pixels` (1) to beyond them."""
    return cv2.addWeighted(pixels, factor, ground, 1 - factor, DOWN)  # type: ignore[return-value]


def chosen(resample: Any) -> Any:
    """The interpolation; of several, one is drawn, as timm does."""
    return random.choice(resample) if isinstance(resample, (list, tuple)) else resample


def moved(
    pixels: Pixels, distance: NDArray[np.float64], *, resample: Any, fillcolor: Sequence[int]
) -> Pixels:
    """Each row taken from so many pixels further right, (H,); what comes from outside is filled."""
    height, width = pixels.shape[:2]
    whole = np.floor(distance).astype(np.int64).clip(-width - 2, width + 2)
    part = distance - np.floor(distance)
    # Four neighbours of every pixel, the first of them one to the left; the edges go on outside.
    left, right = max(0, 1 - whole.min()), max(0, 2 + whole.max())
    wide = cv2.copyMakeBorder(pixels, 0, 0, left, right, cv2.BORDER_REPLICATE)
    near = np.empty((height, width + 3, 3), dtype=np.int16)
    turns = np.flatnonzero(np.diff(whole)) + 1
    for first, last in zip([0, *turns], [*turns, height], strict=True):
        start = left - 1 + whole[first]
        near[first:last] = wide[first:last, start : start + width + 3]
    weights = _cubic(part) if chosen(resample) == Image.Resampling.BICUBIC else _linear(part)
    total, product = np.full((2, height, width, 3), WHOLE // 2, dtype=np.int16)
    for place, weight in enumerate(weights):
        total += np.multiply(near[:, place : place + width], weight[:, None, None], out=product)
    total >>= WHOLE.bit_length() - 1
    seen: Pixels = total.clip(0, 255, out=total).astype(np.uint8)
    return _filled_outside(seen, distance, fillcolor)


def _filled_outside(
    pixels: Pixels, distance: NDArray[np.float64], fillcolor: Sequence[int]
) -> Pixels:
    """Where the middle of a pixel comes from outside of the picture."""
    height, width = pixels.shape[:2]
    column, first = np.arange(width, dtype=np.int16), np.ceil(-0.5 - distance[:, None])
    low, high = (edge.clip(-1, width + 1).astype(np.int16) for edge in (first, first + width))
    outside = ((column < low) | (column >= high)).view(np.uint8)
    cv2.copyTo(_plain((height, width), tuple(fillcolor)), outside, pixels)
    return pixels


@cache
def _plain(size: tuple[int, int], colour: tuple[int, ...]) -> Pixels:
    return np.tile(np.array(colour, dtype=np.uint8), (*size, 1))


def _cubic(part: NDArray[np.float64]) -> list[NDArray[np.int16]]:
    """The weights of four neighbours, in all `WHOLE`: Pillow's, whose outer slope is -1."""
    d, e = part, 1 - part
    return _in_all(-d * e * e, 1 - 2 * d**2 + d**3, 1 - 2 * e**2 + e**3)


def _linear(part: NDArray[np.float64]) -> list[NDArray[np.int16]]:
    return _in_all(0 * part, 1 - part, part)


def _in_all(*weights: NDArray[np.float64]) -> list[NDArray[np.int16]]:
    rounded = [np.round(WHOLE * weight).astype(np.int16) for weight in weights]
    return [*rounded, np.asarray(WHOLE - sum(rounded), dtype=np.int16)]


def _on_its_side(operation: Callable[..., Pixels], pixels: Pixels, *given: Any, **how: Any) -> Any:
    """What an operation does along rows, along columns."""
    return cv2.transpose(operation(cv2.transpose(pixels), *given, **how))
