"""What one must know of a classifier besides its weights: timm's config.json, and a section of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm

from srd.data.labels import class_names, readable, turned
from srd.data.preprocess import Preprocessing
from srd.errors import UserError
from srd.export.layout import CONFIG
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small

OWN_SECTION = "srd"  # of config.json: what timm does not ask for
MOST_SETTINGS, MOST_LEVELS, MOST_TEXT = 10_000, 30, 1 << 20


@dataclass(frozen=True)
class Description:
    """A classifier without its weights.

    Args:
        architecture: one of timm's names, or of those registered with it.
        preprocessing: of its images.
        num_classes: 0 for a backbone, which gives its features (B, D).
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

    def __post_init__(self) -> None:
        """Raise a UserError where a file gave something else than this."""
        if type(self.num_classes) is not int or not 0 <= self.num_classes <= LIMITS.classes:
            raise UserError(f"its number of classes is none from 0 to {LIMITS.classes:,}")
        if not isinstance(self.about, Mapping) or not all(
            isinstance(text, str) and len(text) <= LIMITS.text
            for text in (*self.about, *self.about.values())
        ):
            raise UserError(
                f"what it says of itself is no texts of at most {LIMITS.text:,} characters"
            )
        check_settings(self.settings)

    @property
    def labels(self) -> list[str]:
        """A label for people for every class."""
        return readable(self.label_names, self.num_classes)

    @property
    def turned(self) -> bool:
        """Whether its run turned pictures upright; not where that is not known."""
        data = self.settings.get("data")
        if not isinstance(data, Mapping) or "exif_orientation" not in data:
            return False
        given = data["exif_orientation"]
        return turned(given if isinstance(given, bool) else None, self.label_names)

    @property
    def model_args(self) -> dict[str, Any]:
        """What timm must be told to build it, besides the number of classes."""
        usual = timm.get_pretrained_cfg(self.architecture)
        fixed = usual is not None and usual.fixed_input_size
        size = {"img_size": self.preprocessing.image_size} if fixed else {}
        channels = self.preprocessing.channels
        return size | ({"in_chans": channels} if channels != 3 else {})

    def to_config(self) -> dict[str, Any]:
        """What timm reads from `config.json`, and a section of ours."""
        usual = timm.get_pretrained_cfg(self.architecture)
        images, names = self.preprocessing, self.label_names
        config: dict[str, Any] = {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "pretrained_cfg": {
                "num_classes": self.num_classes,
                "input_size": [images.channels, images.image_size, images.image_size],
                "fixed_input_size": "img_size" in self.model_args,
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
            UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError: something
                is missing or not what it should be.
        """
        images = config["pretrained_cfg"]
        if images.get("crop_mode", "center") != "center":
            raise ValueError("its crop_mode is not a centre crop")
        classes = config["num_classes"]
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


def check_settings(settings: Any) -> None:
    """Raise a UserError unless these are plain values in containers, not too many nor too deep."""
    level, count, text = [settings], 0, 0
    if not isinstance(settings, Mapping):
        raise UserError("its settings are no mapping")
    for _ in range(MOST_LEVELS):
        count += len(level)
        text += sum(len(value) for value in level if isinstance(value, str))
        containers = [value for value in level if isinstance(value, (Mapping, list, tuple))]
        plain = all(
            isinstance(value, (Mapping, list, tuple, str, int, float, type(None)))
            for value in level
        )
        if not plain or count > MOST_SETTINGS or text > MOST_TEXT:
            raise UserError("its settings are not a few plain values")
        level = [
            inner
            for value in containers
            for inner in ((*value, *value.values()) if isinstance(value, Mapping) else value)
        ]
        if not level:
            return
    raise UserError("its settings are nested too deeply")


def read_description(folder: Path) -> Description:
    """The description in an exported folder; a UserError where it is not one."""
    file = folder / CONFIG
    try:
        text = str(read_small(file, LIMITS.description_bytes), "utf-8")
    except (OSError, ValueError, Refused) as error:
        raise UserError(f"{file} does not describe a classifier for timm ({error})") from None
    return parse_description(text, file)


def exported_with(metadata: Mapping[str, str], file: Path) -> Description | None:
    """The description in the metadata of a file that was exported here; None for others.

    Raises:
        UserError: there is one, and it is damaged.
    """
    text = metadata.get(OWN_SECTION)
    return None if text is None else parse_description(text, file)


def parse_description(text: str, file: Path) -> Description:
    """The description in a JSON text, which is in `file`.

    Raises:
        UserError: it is none, or it describes something that no classifier of ours is.
    """
    try:
        return Description.from_config(json.loads(text))
    except RecursionError:
        reason = "nested too deeply"
    except KeyError as error:
        reason = f"no {error}"
    except (
        UserError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160]
    raise UserError(f"{file} does not describe a classifier for timm ({reason})")
