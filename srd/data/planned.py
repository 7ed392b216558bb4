"""timm's RandAugment and AutoAugment as a plan: all of their draws, and no pixels (`data.pixels: device`).

A worker hands the plan over, and `srd.data.batched_operations` follows it, many views at once.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from timm.data import auto_augment as timms
from timm.data.auto_augment import AugmentOp, AutoAugment, RandAugment

from srd.data.batched_operations import Drawn
from srd.data.fast_operations import chosen

RESAMPLES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


class Plan(NamedTuple):
    """What stands in for a picture of so many pixels: it remembers what is asked of it."""

    width: int
    height: int
    drawn: tuple[Drawn, ...] = ()


class Policy:
    """A step of timm's, on plans."""

    def __init__(self, step: Callable[[Plan], Plan]) -> None:
        self.step = step

    def __call__(self, height: int, width: int) -> tuple[Drawn, ...]:
        """What it draws for a picture of this size."""
        return self.step(Plan(width, height)).drawn


def planned(step: Any) -> Policy | None:
    """A policy of timm's that draws alone; None of other steps, or where batches know not all of it."""
    if type(step) is RandAugment and all(map(_known, step.ops)):
        operations = np.array([_planned(o) for o in step.ops], dtype=object)  # as it draws from
        return Policy(RandAugment(operations, step.num_layers, step.choice_weights))
    if type(step) is AutoAugment and all(_known(o) for policy in step.policy for o in policy):
        return Policy(AutoAugment([[_planned(o) for o in policy] for policy in step.policy]))
    return None


def _known(operation: AugmentOp) -> bool:
    resample = operation.kwargs["resample"]
    several = resample if isinstance(resample, (list, tuple)) else (resample,)
    return operation.aug_fn in PLANS and RESAMPLES.keys() >= {*several}


def _planned(operation: AugmentOp) -> AugmentOp:
    """timm's operation, which draws its strength, on plans."""
    own = copy.copy(operation)
    own.aug_fn = partial(_add, operation.aug_fn)
    return own


def _add(function: Callable[..., Any], plan: Plan, *given: Any, **how: Any) -> Plan:
    return plan._replace(drawn=(*plan.drawn, PLANS[function](plan, *given, **how)))


def _alone(plan: Plan, *numbers: float, name: str, **_: Any) -> Drawn:
    """An operation that takes timm's arguments."""
    return Drawn(name, numbers)


def _solarize_add(plan: Plan, add: int, thresh: int = 128, **_: Any) -> Drawn:
    return Drawn("solarize_add", (add, thresh))


def _posterize(plan: Plan, bits_to_keep: int, **_: Any) -> Drawn:
    return Drawn("posterize", (0xFF00 >> min(bits_to_keep, 8) & 0xFF,))


def _desaturate(plan: Plan, factor: float, **_: Any) -> Drawn:
    return Drawn("color", (min(1.0, max(0.0, 1.0 - factor)),))


def _along(axes: str, map_of: Callable[[Plan, float], tuple[float, ...]]) -> Callable[..., Drawn]:
    """What moves pixels along these axes: timm's argument to an affine map."""

    def move(plan: Plan, given: float, *, resample: Any, fillcolor: Sequence[int]) -> Drawn:
        mode = RESAMPLES[chosen(resample)]
        return Drawn(f"{mode}_{axes}", (*map_of(plan, given), *fillcolor))

    return move


def _rotation(plan: Plan, degrees: float) -> tuple[float, ...]:
    """About the middle, as Pillow's."""
    x, y, angle = plan.width / 2, plan.height / 2, -math.radians(degrees)
    sine, cosine = round(math.sin(angle), 15), round(math.cos(angle), 15)
    return cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y


# Which function of timm's becomes what; it is called with the plan and timm's arguments.
PLANS: dict[Callable[..., Any], Callable[..., Drawn]] = {
    **{
        getattr(timms, name): partial(_alone, name=name)
        for name in (
            "auto_contrast", "equalize", "invert", "solarize", "brightness", "contrast", "color",
            "sharpness",
        )
    },
    timms.solarize_add: _solarize_add,
    timms.posterize: _posterize,
    timms.desaturate: _desaturate,
    timms.rotate: _along("xy", _rotation),
    timms.shear_x: _along("x", lambda _, by: (1, by, 0, 0, 1, 0)),
    timms.shear_y: _along("y", lambda _, by: (1, 0, 0, by, 1, 0)),
    timms.translate_x_abs: _along("x", lambda _, by: (1, 0, by, 0, 1, 0)),
    timms.translate_y_abs: _along("y", lambda _, by: (1, 0, 0, 0, 1, by)),
    timms.translate_x_rel: _along("x", lambda plan, by: (1, 0, by * plan.width, 0, 1, 0)),
    timms.translate_y_rel: _along("y", lambda plan, by: (1, 0, 0, 0, 1, by * plan.height)),
}  # fmt: skip
