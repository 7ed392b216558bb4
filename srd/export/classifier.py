"""A classifier that can be used without knowing where it came from.

`Description` is what one must know besides the weights, and is written as timm's `config.json`;
`open_classifier` makes a `Classifier` from an exported folder, or from a run or a file whose half
of the project recognises its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from srd.errors import UserError, nearest
from srd.export.description import Description, exported_with, read_description
from srd.export.layout import CONFIG, ONNX, TORCH, WEIGHTS
from srd.export.of_run import describe_run
from srd.export.origin import Source, read_source
from srd.files.checkpoint import explain_mismatch, load_weights
from srd.installed import registered
from srd.models.sizes import TooLarge, build_to_fit
from srd.models.timm_models import MISFITS
from srd.printable import printable


class Classifier(NamedTuple):
    """A network in evaluation mode, images (B, 3, H, W) to logits (B, C), and what it is."""

    model: nn.Module
    description: Description
    name: str  # of its run, folder or file


# What a half of the project says of weights: their description and their plain names, or None
# where they are not its own.
Half = Callable[[Source], tuple[Description, Mapping[str, Tensor]] | None]


def open_classifier(path: str | Path, halves: Iterable[Half] | None = None) -> Classifier:
    """The classifier in an exported folder, a run's folder, or a file of weights; on the CPU.

    Args:
        halves: are asked whose weights these are; None: those that are installed.

    Raises:
        UserError: no such thing, or weights that nobody knows.
    """
    halves = installed_halves() if halves is None else halves  # they register with timm, too
    path = Path(os.path.expanduser(path))
    if path.name.endswith(Path(TORCH).suffix):
        raise UserError(
            f"{path} is a program, which torch.export.load would run: give the folder that it is in, "
            f"its {ONNX} or its {WEIGHTS}"
        )
    if (folder := exported_folder(path)) is not None:
        weights = folder / WEIGHTS
        return build(
            read_description(folder), load_weights(weights), weights, folder.resolve().name
        )
    source = read_source(path / WEIGHTS if os.path.isfile(path / WEIGHTS) else path)
    if (described := exported_with(source.metadata, source.path)) is not None:
        return build(described, source.weights, source.path, source.path.stem)
    for half in (describe_run, *halves):
        if (by_half := _described(half, source)) is not None:
            return build(*by_half, source.path, source.run_name or by_half[0].architecture)
    some = ", ".join(printable(name[:60]) for name in list(source.weights)[:3])
    raise UserError(
        f"{source.path} holds no student of this project: it is no run's, and neither DeiT with a "
        f"convolutional stem nor a ResNet has {some}, ..."
    )


def _described(half: Half, source: Source) -> tuple[Description, Mapping[str, Tensor]] | None:
    """What a half says of weights; its errors name the file."""
    try:
        return half(source)
    except UserError as error:
        where = "" if str(source.path) in str(error) else f"{source.path}: "
        raise UserError(f"{where}{error}") from None


def installed_halves() -> list[Half]:
    """Those of the entry points "srd.halves"."""
    return [entry.load() for entry in registered("srd.halves").values()]


def exported_folder(path: Path) -> Path | None:
    """The exported folder that `path` is, or whose weights it is."""
    folder = path.parent if path.name == WEIGHTS else path
    return folder if os.path.isfile(folder / CONFIG) else None


def build(
    description: Description, weights: Mapping[str, Tensor], path: Path, label: str
) -> Classifier:
    """The described network with these weights, in float32, in evaluation mode.

    Raises:
        UserError: timm has no such architecture, or the weights do not fit it (which do not).
    """
    name, classes = description.architecture, description.num_classes
    if not timm.is_model(name):
        raise UserError(f"{path}: unknown architecture {name!r}{nearest(name, timm.list_models())}")
    what = f"{name} with {classes} classes"
    try:
        model = build_to_fit(
            lambda: timm.create_model(name, num_classes=classes, **description.model_args),
            weights,
            lambda expected: explain_mismatch(expected, weights, path, what),
        )
    except TooLarge:
        raise UserError(f"{path} does not fit {what}: that has far more parameters") from None
    except MISFITS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: {what} cannot be built as it is described ({reason})") from None
    expected = model.state_dict()
    model.load_state_dict({key: weights[key].to(value.dtype) for key, value in expected.items()})
    return Classifier(model.eval(), description, label)


@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to class probabilities (B, C), in float32 on the CPU."""
    return torch.softmax(model(images).float(), dim=1).cpu()
