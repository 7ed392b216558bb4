"""A classifier that can be used without knowing where it came from.

`Description` is what one must know besides the weights, and is written as timm's `config.json`;
`open_classifier` makes a `Classifier` from an exported folder, or from a run or a file whose half
of the project recognises its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from srd.data.labels import class_names, readable
from srd.data.preprocess import Preprocessing
from srd.errors import UserError, nearest
from srd.export.formats import CONFIG, WEIGHTS
from srd.export.origin import Source, read_source
from srd.files.checkpoint import explain_mismatch, load_weights

OWN_SECTION = "srd"  # of config.json: what timm does not ask for


@dataclass(frozen=True)
class Description:
    """A classifier without its weights.

    Args:
        architecture: one of timm's names, or of those registered with it.
        preprocessing: of its images.
        label_names: of its classes, in order; None where nobody knows.
        about: what the model card says: student, teacher, data, accuracy.
        settings: the configuration of the run that made it, without places on a disk.
    """

    architecture: str
    num_classes: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    label_names: tuple[str, ...] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """A label for people for every class."""
        return readable(self.label_names, self.num_classes)

    @property
    def model_args(self) -> dict[str, Any]:
        """What timm must be told to build it, besides the number of classes."""
        usual = timm.get_pretrained_cfg(self.architecture)
        fixed = usual is not None and usual.fixed_input_size
        return {"img_size": self.preprocessing.image_size} if fixed else {}

    def to_config(self) -> dict[str, Any]:
        """What timm reads from `config.json`, and a section of ours."""
        usual = timm.get_pretrained_cfg(self.architecture)
        images, names = self.preprocessing, self.label_names
        config: dict[str, Any] = {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "pretrained_cfg": {
                "num_classes": self.num_classes,
                "input_size": [3, images.image_size, images.image_size],
                "fixed_input_size": bool(self.model_args),
                "interpolation": images.interpolation,
                "crop_pct": images.crop,
                "crop_mode": "center",
                "mean": list(images.mean),
                "std": list(images.std),
                "first_conv": usual.first_conv if usual else None,
                "classifier": usual.classifier if usual else None,
            },
            OWN_SECTION: {"about": dict(self.about), "settings": dict(self.settings)},
        }
        if self.model_args:
            config["model_args"] = self.model_args
        if names is not None:
            config["label_names"] = list(names)
            if list(names) != self.labels:
                config["label_descriptions"] = dict(zip(names, self.labels, strict=True))
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Description:
        """What `to_config` wrote, or timm for a model of its own.

        Raises:
            KeyError, TypeError, ValueError: something is missing or not what it should be.
        """
        images = config["pretrained_cfg"]
        if images.get("crop_mode", "center") != "center":
            raise ValueError(f"crop_mode {images['crop_mode']} is not a centre crop")
        classes = int(config["num_classes"])
        names = config.get("label_names")
        own = config.get(OWN_SECTION, {})
        return cls(
            architecture=str(config["architecture"]),
            num_classes=classes,
            preprocessing=Preprocessing(
                image_size=int(images["input_size"][-1]),
                mean=tuple(float(value) for value in images["mean"]),
                std=tuple(float(value) for value in images["std"]),
                crop=float(images["crop_pct"]),
                interpolation=str(images["interpolation"]),
            ),
            label_names=class_names(classes, names if isinstance(names, list) else None),
            about=own.get("about", {}),
            settings=own.get("settings", {}),
        )


class Classifier(NamedTuple):
    """A network in evaluation mode, images (B, 3, H, W) to logits (B, C), and what it is."""

    model: nn.Module
    description: Description
    name: str  # of its run, folder or file


# What a half of the project says of weights: their description and their plain names, or None
# where they are not its own.
Half = Callable[[Source], tuple[Description, Mapping[str, Tensor]] | None]


def open_classifier(path: str | Path, halves: Iterable[Half]) -> Classifier:
    """The classifier in an exported folder, a run's folder, or a file of weights; on the CPU.

    Raises:
        UserError: no such thing, or weights that none of `halves` knows.
    """
    path = Path(path).expanduser()
    if (folder := exported_folder(path)) is not None:
        weights = folder / WEIGHTS
        return build(
            read_description(folder), load_weights(weights), weights, folder.resolve().name
        )
    source = read_source(path / WEIGHTS if (path / WEIGHTS).is_file() else path)
    if (described := exported_with(source.metadata)) is not None:
        return build(described, source.weights, source.path, source.path.stem)
    for half in halves:
        if (found := half(source)) is not None:
            return build(*found, source.path, source.run_name or found[0].architecture)
    some = ", ".join(list(source.weights)[:3])
    raise UserError(
        f"{source.path} holds no student of this project: neither DeiT with a convolutional stem "
        f"nor a ResNet has {some}, ..."
    )


def exported_folder(path: Path) -> Path | None:
    """The exported folder that `path` is, or whose weights it is."""
    folder = path.parent if path.name == WEIGHTS else path
    return folder if (folder / CONFIG).is_file() else None


def read_description(folder: Path) -> Description:
    """The description in an exported folder; a UserError where it is not one."""
    file = folder / CONFIG
    try:
        return Description.from_config(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} does not describe a classifier for timm ({reason})") from None


def exported_with(metadata: Mapping[str, str]) -> Description | None:
    """The description in the metadata of a file that was exported here; None for others."""
    try:
        return Description.from_config(json.loads(metadata[OWN_SECTION]))
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


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
    model = timm.create_model(name, num_classes=classes, **description.model_args)
    expected = model.state_dict()
    explain_mismatch(expected, weights, path, f"{name} with {classes} classes")
    model.load_state_dict({key: weights[key].to(value.dtype) for key, value in expected.items()})
    return Classifier(model.eval(), description, label)


@torch.inference_mode()
def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) to class probabilities (B, C), in float32 on the CPU."""
    return torch.softmax(model(images).float(), dim=1).cpu()
