"""What one must know of a classifier besides its weights: timm's config.json, and a section of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm

from srd.data.labels import class_names, readable
from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.layout import CONFIG

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
