"""What the DeiT half knows of weights: which of its students they are, and how to feed it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import Tensor

from deit.srd_deit import PATCH, PREFIX, SIZES
from srd.config.fields import Config
from srd.data.inputs import preprocessing
from srd.data.labels import class_names
from srd.errors import UserError
from srd.export.description import Description
from srd.export.of_run import about_run, recipe_of, run_config
from srd.export.origin import Source
from srd.files.weights import split

STEM, POSITIONS, HEAD = "conv_embed.proj.weight", "pos_embed", "head.weight"


def describe(source: Source) -> tuple[Description, Mapping[str, Tensor]] | None:
    """The student with its weights; None for others.

    Size, classes and image size come from the tensors' shapes; the rest from the run, and where
    there is none it is as released.

    Raises:
        UserError: a student whose shapes are none of ours, or a run's settings that do not fit.
    """
    weights = split(source.weights).student
    if STEM not in weights:
        return None
    config = run_config(source)
    name, classes, image_size = student_shape(weights, source)
    names = class_names(classes, source.facts.get("class_names"))
    images = preprocessing((config or Config()).data, image_size)
    title = f"DeiT-{name} with a convolutional stem"
    about = about_run(source, config, title, names)
    architecture = PREFIX + name
    return Description(architecture, classes, images, names, about, recipe_of(config)), weights


def student_shape(weights: Mapping[str, Tensor], source: Source) -> tuple[str, int, int]:
    """(name, classes, image size) of a student, from the shapes of its tensors.

    Raises:
        UserError: a tensor is missing, or the shapes are not those of a student of ours.
    """
    classes = weights[HEAD].shape[0] if HEAD in weights and weights[HEAD].ndim == 2 else 0
    headless = source.facts.get("num_classes") == 0
    for name, dimensions in ((STEM, 4), (POSITIONS, 3), *([] if headless else [(HEAD, 2)])):
        if name not in weights or weights[name].ndim != dimensions:
            raise UserError(f"{source.path} is a part of a student: {name} is not there, or broken")
    width, tokens = weights[STEM].shape[0], weights[POSITIONS].shape[1]
    size = next((name for name, (known, _) in SIZES.items() if known == width), None)
    if size is None:
        known = ", ".join(f"{name} {width}" for name, (width, _) in SIZES.items())
        raise UserError(f"{source.path}: no student is {width} wide (there are {known})")
    side = isqrt(max(0, tokens - 2))
    if side == 0 or side * side + 2 != tokens:
        raise UserError(f"{source.path}: {tokens} positions are not two and a square of patches")
    return size, classes, side * PATCH
