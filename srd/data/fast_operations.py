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

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2's, which Pillow's mode L is
WHOLE = 64  # fractions of a pixel's weight, as integers
DOWN = -0.499  # OpenCV rounds to the nearest number, Pillow's blend rounds down

cv2.setNumThreads(1)  # a process for each core is there already; and threads do not survive a fork


def auto_contrast(pixels: Pixels, **_: Any) -> Pixels:
    stretch = np.eye(3, 4)  # each channel by a number, and one more
    for channel, plane in enumerate(planes(pixels)):
        low, high = cv2.minMaxLoc(plane)[:2]
        if high > low:
            scale = 255.0 / (high - low)
            stretch[channel, [channel, 3]] = scale, DOWN - scale * low
    return cv2.transform(pixels, stretch)  # type: ignore[return-value]


def equalize(pixels: Pixels, **_: Any) -> Pixels:
    parts = planes(pixels)
    for plane in parts:
        counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        step = (plane.size - int(counts[np.flatnonzero(counts)[-1]])) // 255
        if step:
            below = np.cumsum(counts) - counts
            table = np.minimum((below + step // 2) // step, 255, out=below)
            cv2.LUT(plane, table.astype(np.uint8), dst=plane)
    return cv2.merge([*parts])


def invert(pixels: Pixels, **_: Any) -> Pixels:
    return cv2.bitwise_not(pixels)  # type: ignore[return-value]


def solarize(pixels: Pixels, thresh: int, **_: Any) -> Pixels:
    return pixels ^ _from(pixels, thresh)


def solarize_add(pixels: Pixels, add: int, thresh: int = 128, **_: Any) -> Pixels:
    return cv2.add(pixels, ~_from(pixels, thresh) & np.uint8(add))  # type: ignore[return-value]


def _from(pixels: Pixels, thresh: int) -> Pixels:
    """255 where a value is `thresh` or more, and 0 elsewhere."""
    return cv2.threshold(pixels, thresh - 1, 255, cv2.THRESH_BINARY)[1]  # type: ignore[return-value]


def posterize(pixels: Pixels, bits_to_keep: int, **_: Any) -> Pixels:
    return pixels & np.uint8(0xFF00 >> min(bits_to_keep, 8) & 0xFF)


def brightness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    return cv2.addWeighted(pixels, factor, pixels, 0, DOWN)  # type: ignore[return-value]


def contrast(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    mean = int(cv2.mean(grey(pixels))[0] + 0.5)
    shift = mean * (1 - factor) + DOWN
    return cv2.addWeighted(pixels, factor, pixels, 0, shift)  # type: ignore[return-value]


def color(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    faded = (1 - factor) * LUMA + factor * np.eye(3)
    return cv2.transform(pixels, np.c_[faded, [DOWN] * 3])  # type: ignore[return-value]


def desaturate(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    return color(pixels, min(1.0, max(0.0, 1.0 - factor)))


def sharpness(pixels: Pixels, factor: float, **_: Any) -> Pixels:
    # Pillow's smooth picture has 5 thirteenths of a pixel, and one of each neighbour
    smooth = (1 - factor) * 9 / 13
    sharp = cv2.addWeighted(pixels, 1 - smooth, cv2.blur(pixels, (3, 3)), smooth, DOWN)
    for edge in (0, -1):  # which Pillow leaves as it is
        sharp[edge], sharp[:, edge] = pixels[edge], pixels[:, edge]
    return sharp  # type: ignore[return-value]


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
    # on floats, in which OpenCV takes less time for the same bytes
    turned = cv2.warpAffine(
        pixels.astype(np.float32), matrix, (width, height), flags=flags, borderValue=[*fillcolor]
    )
    return cv2.addWeighted(turned, 1, turned, 0, 0, dtype=cv2.CV_8U)  # type: ignore[return-value]


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


def chosen(resample: Any) -> Any:
    """The interpolation; of several, one is drawn, as timm does."""
    return random.choice(resample) if isinstance(resample, (list, tuple)) else resample


def moved(
    pixels: Pixels, distance: NDArray[np.float64], *, resample: Any, fillcolor: Sequence[int]
) -> Pixels:
    """Each row taken from so many pixels further right, (H,); what comes from outside is filled."""
    height, width = pixels.shape[:2]
    distance = distance.clip(-width - 1, width + 1)
    whole = np.floor(distance)
    cubic = chosen(resample) == Image.Resampling.BICUBIC
    part = (PARTS * (distance - whole)).astype(np.int64).clip(max=PARTS - 1)
    table = (CUBIC if cubic else LINEAR)[part]
    # Four neighbours of every pixel, the first of them one to the left; the edges go on outside.
    start = whole.astype(np.int64) - 1
    left, right = max(0, -start.min()), max(0, 3 + start.max())
    wide: Any = cv2.copyMakeBorder(pixels, 0, 0, left, right, cv2.BORDER_REPLICATE)
    near = _windows(wide, 3 * (left + start), 3 * (width + 3)).astype(np.int16)
    each, across = near.strides
    shape, strides = (height, 4, 3 * width), (each, 3 * across, across)
    total = np.einsum("hk,hkn->hn", table, np.ndarray(shape, np.int16, near, 0, strides))
    total.clip(0, 255 * WHOLE, out=total)
    seen: Any = cv2.convertScaleAbs(total, alpha=1 / WHOLE).reshape(pixels.shape)
    # where the middle of a pixel comes from outside
    first = np.floor(distance + 0.5).astype(np.int64) + (width + 2)
    outside = _windows(_edges(height, width), first, width)
    cv2.copyTo(_plain((height, width), tuple(fillcolor)), outside, seen)
    return seen


def _windows(rows: Pixels, start: NDArray[np.int64], size: int) -> Pixels:
    """(H, size): of each row of bytes, those from its own `start` on."""
    row = rows.nbytes // len(rows)
    windows: Pixels = np.ndarray((rows.nbytes - size + 1, size), np.uint8, rows, 0, (1, 1))
    return windows[row * np.arange(len(rows)) + start]


@cache
def _edges(height: int, width: int) -> Pixels:
    """Rows of 255, but for a picture in the middle."""
    edges = np.full((height, 3 * width + 4), 255, dtype=np.uint8)
    edges[:, width + 2 : -width - 2] = 0
    return edges


@cache
def _plain(size: tuple[int, int], colour: tuple[int, ...]) -> Pixels:
    return np.tile(np.array(colour, dtype=np.uint8), (*size, 1))


def _in_all(*weights: NDArray[np.float64]) -> NDArray[np.int16]:
    """Weights of neighbours, (PARTS, 4), in all `WHOLE`: the last is what the others leave."""
    rounded = np.round(WHOLE * np.stack([*weights, 0 * weights[0]], axis=1)).astype(np.int16)
    rounded[:, 3] = WHOLE - rounded.sum(1)
    return rounded


PARTS = 256  # of a pixel
_d = (np.arange(PARTS) + 0.5) / PARTS
_e = 1 - _d
LINEAR = _in_all(0 * _d, _e, _d)
CUBIC = _in_all(-_d * _e * _e, 1 - 2 * _d**2 + _d**3, 1 - 2 * _e**2 + _e**3)  # Pillow's


def _on_its_side(operation: Callable[..., Pixels], pixels: Pixels, *given: Any, **how: Any) -> Any:
    """What an operation does along rows, along columns."""
    return cv2.transpose(operation(cv2.transpose(pixels), *given, **how))
