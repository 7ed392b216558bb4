"""What the ResNet half knows of weights: which ResNet they are, and how to feed it.

torchvision's and timm's plain ResNets have the same names and shapes, so either loads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from srd.data.labels import class_names, is_imagenet
from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.description import Description
from srd.export.origin import Source
from srd.installed import need_extra

ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2",
    "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d",
)  # fmt: skip
IMPORT, TRANSFORMS = "!import_call", "torchvision.transforms."
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def describe(source: Source) -> tuple[Description, Mapping[str, Tensor]] | None:
    """The ResNet, with its plain weights; None for others.

    Depth and classes come from the tensors' shapes; the images' preprocessing from the test data
    of the run's configuration, and where there is none it is torchvision's for ImageNet.

    Raises:
        UserError: a ResNet whose shapes are none of torchvision's, or test transforms that cannot
            be written down.
    """
    weights = plain_weights(source.weights)
    if not {"conv1.weight", "layer4.0.conv1.weight", "fc.weight"} <= set(weights):
        return None
    architecture, classes = which_resnet(weights, source.path), weights["fc.weight"].shape[0]
    settings = _settings(source)
    data = _test_data(settings)
    images = preprocessing(data, source.path) if data else Preprocessing()
    names = class_names(classes, source.facts.get("class_names"))
    about = _about(source, settings, architecture, is_imagenet(names))
    return Description(architecture, classes, images, names, about, settings), weights


def plain_weights(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The ResNet's weights out of torchdistill's wrapper (`model.*`, beside `linear.*` and
    `norm_layer.*`), under their bare names; plain weights as they are."""
    inner = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
    return inner or weights


def which_resnet(weights: Mapping[str, Tensor], path: Path) -> str:
    """The name of the ResNet whose tensors have these shapes, the last layer left out."""
    shapes = {name: value.shape for name, value in weights.items() if not name.startswith("fc.")}
    for name in ARCHITECTURES:
        with torch.device("meta"):
            expected = timm.create_model(name).state_dict()
        if shapes == {k: v.shape for k, v in expected.items() if not k.startswith("fc.")}:
            return name
    raise UserError(f"{path} is a ResNet, but none of {', '.join(ARCHITECTURES)}")


def _settings(source: Source) -> Mapping[str, Any]:
    """The recipe of the run that the weights come from, in its plain form; {} without one."""
    if source.settings is not None:
        return source.settings
    if source.config_file is None:
        return {}
    need_extra("resnet", "torchdistill", what="settings in torchdistill's YAML")
    from resnet.recipe import read_settings

    return read_settings(source.config_file)


def _test_data(settings: Mapping[str, Any]) -> Any:
    loader = (settings.get("test") or {}).get("test_data_loader") or {}
    return (settings.get("datasets") or {}).get(loader.get("dataset_id"))


class Transform(NamedTuple):
    """A torchvision transform that a recipe names, with its arguments by name."""

    name: str
    arguments: dict[str, Any]


# The names of positional arguments, of the transforms that can be written down.
POSITIONAL = {
    "Resize": ("size", "interpolation"),
    "CenterCrop": ("size",),
    "ToTensor": (),
    "Normalize": ("mean", "std"),
}


def preprocessing(data: Any, path: Path) -> Preprocessing:
    """A data set's transforms in a plain recipe as a `Preprocessing`.

    Raises:
        UserError: other transforms than Resize, CenterCrop, ToTensor and Normalize, or a Resize or
            CenterCrop that is not to a square.
    """
    steps = {step.name: step.arguments for step in _transforms(data, path)}
    normalize = steps.get("Normalize", {"mean": (0.0,) * 3, "std": (1.0,) * 3})
    resize = steps.get("Resize", {}).get("size")
    size = steps.get("CenterCrop", {"size": resize}).get("size")
    if not isinstance(resize, int) or not isinstance(size, int) or size > resize:
        raise UserError(
            f"{path}: its test images are not resized to one number of pixels (Resize) and then "
            "cut to a smaller one (CenterCrop): that cannot be handed on"
        )
    return Preprocessing(
        image_size=size,
        mean=tuple(float(value) for value in normalize["mean"]),
        std=tuple(float(value) for value in normalize["std"]),
        crop=_crop(size, resize),
        interpolation=_interpolation(steps["Resize"].get("interpolation", 2), path),
    )


def _transforms(node: Any, path: Path) -> Iterator[Transform]:
    """Every transform in a plain recipe, in order."""
    if isinstance(node, list):
        for item in node:
            yield from _transforms(item, path)
    if not isinstance(node, dict):
        return
    call = node.get(IMPORT)
    call = call if isinstance(call, dict) else {}
    key = str(call.get("key", ""))
    if key.startswith(TRANSFORMS) and not key.endswith(".Compose"):
        name, given = key.removeprefix(TRANSFORMS), call.get("init") or {}
        if name not in POSITIONAL:
            raise UserError(
                f"{path}: its test images pass {key}, which cannot be handed on; what can: "
                + ", ".join(POSITIONAL)
            )
        arguments = dict(zip(POSITIONAL[name], given.get("args") or (), strict=False))
        yield Transform(name, {**arguments, **(given.get("kwargs") or {})})
        return
    for value in node.values():
        yield from _transforms(value, path)


def _crop(size: int, resize: int) -> float:
    """The fraction from which timm computes `resize` again: floor(size / fraction)."""
    crop = size / resize
    while math.floor(size / crop) < resize:
        crop = math.nextafter(crop, 0)
    return crop


def _interpolation(value: Any, path: Path) -> str:
    if value in INTERPOLATIONS:
        return INTERPOLATIONS[value]
    known = [name for name in INTERPOLATIONS.values() if name in str(value).lower()]
    if not known:
        raise UserError(f"{path}: its test images are resized with {value}: not known here")
    return known[0]


def _about(
    source: Source, settings: Mapping[str, Any], architecture: str, imagenet: bool
) -> dict[str, str]:
    about = {"Model": architecture, "Accuracy": source.measured}
    if not settings:
        return about
    train = settings.get("train") or {}
    loader = train.get("train_data_loader") or {}
    about["Teacher"] = source.facts.get("teacher") or "none"
    data = "ImageNet-1k" if imagenet else str(loader.get("dataset_id", "unknown"))
    count = source.facts.get("train_images")
    about["Training data"] = data + (f", {count} images" if count else "")
    batch = (loader.get("kwargs") or {}).get("batch_size")
    about["Training"] = f"{train.get('num_epochs')} epochs, batch {batch}"
    return about
