"""What the DeiT half knows of weights: which of its students they are, and how to feed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

from torch import Tensor

from deit.srd_deit import PATCH, PREFIX, SIZES
from srd.config.fields import NOT_RECIPE, Config
from srd.config.layers import Layer, build, read_yaml, to_mapping
from srd.data.inputs import preprocessing
from srd.data.labels import class_names, is_imagenet
from srd.errors import UserError
from srd.export.description import Description
from srd.export.origin import Source
from srd.training.task import split_weights

STEM, POSITIONS, HEAD = "conv_embed.proj.weight", "pos_embed", "head.weight"


def describe(source: Source) -> tuple[Description, Mapping[str, Tensor]] | None:
    """The student, or a teacher that `--train_teacher` made, with its weights; None for others.

    Size, classes and image size come from the tensors' shapes; the rest from the run, and where
    there is none it is as released.

    Raises:
        UserError: a student whose shapes are none of ours, or a run's settings that do not fit.
    """
    weights, _ = split_weights(source.weights)
    teacher = source.facts.get("trained") == "teacher"
    if STEM not in weights and not teacher:
        return None
    config = _config(source)
    if teacher and config is not None:
        architecture = title = config.teacher.name.split(".")[0]
        classes, image_size = source.facts["num_classes"], config.model.image_size
    else:
        name, classes, image_size = student_shape(weights, source)
        architecture, title = PREFIX + name, f"DeiT-{name} with a convolutional stem"
    names = class_names(classes, source.facts.get("class_names"))
    images = preprocessing(config or Config())
    about = _about(source, config, title, names)
    return Description(
        architecture, classes, replace(images, image_size=image_size), names, about, _recipe(config)
    ), weights


def student_shape(weights: Mapping[str, Tensor], source: Source) -> tuple[str, int, int]:
    """(name, classes, image size) of a student, from the shapes of its tensors.

    Raises:
        UserError: a tensor is missing, or the shapes are not those of a student of ours.
    """
    for name, dimensions in ((STEM, 4), (POSITIONS, 3), (HEAD, 2)):
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
    return size, weights[HEAD].shape[0], side * PATCH


def _config(source: Source) -> Config | None:
    """The configuration of the run that the weights come from, if they do."""
    if source.settings is not None and "model" in source.settings:
        return build(Config, [Layer(str(source.path), source.settings)])
    if source.config_file is not None:
        return build(Config, [Layer(str(source.config_file), read_yaml(source.config_file))])
    return None


def _recipe(config: Config | None) -> dict[str, Any]:
    """The settings that make the student what it is: no folders, devices or file names."""
    settings = to_mapping(config) if config else {}
    for dotted in NOT_RECIPE:
        *sections, key = dotted.split(".")
        inner = settings
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(key, None)
    return settings


def _about(
    source: Source, config: Config | None, title: str, names: tuple[str, ...] | None
) -> dict[str, str]:
    facts = source.facts
    about = {"Model": title, "Accuracy": source.measured}
    if config is None:
        return about
    if facts.get("trained") == "student":
        taught = config.distill.method != "none"
        about["Teacher"] = config.teacher.name if taught else "none"
        about["Method"] = config.distill.method + (
            f" ({config.distill.match})" if config.distill.method == "srd" else ""
        )
    data = {"digits": "scikit-learn's digits"}.get(config.data.dataset, "a folder of images")
    data = "ImageNet-1k" if is_imagenet(names) else data
    count = facts.get("train_images")
    about["Training data"] = data + (f", {count} images" if count else "")
    about["Training"] = f"{config.train.epochs} epochs, batch {config.train.batch_size}"
    return about
