"""What student and teacher say of the validation images: `predictions.json` in a run's folder."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from srd.errors import UserError
from srd.files.checkpoint import write_text
from srd.files.limits import LIMITS
from srd.files.opened import Refused, read_small

# What a thumbnail begins with: nothing else is shown as a picture.
PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one network says of images: arrays (n,), ascending by `images`.

    Args:
        images: positions in the validation images.
        targets: their class numbers.
        classes: what the network takes them for.
        probabilities: how sure it is of that, 0 to 1.
    """

    images: np.ndarray
    targets: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def of(self, images: np.ndarray) -> Told:
        """The rows of `images`, all of which are there, ascending."""
        rows = np.searchsorted(self.images, images)
        return Told(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def in_common(student: Told, teacher: Told) -> tuple[Told, Told]:
    """Both, on the images that both have seen."""
    images = np.intersect1d(student.images, teacher.images)
    return student.of(images), teacher.of(images)


def agreement(student: Told, teacher: Told) -> float | None:
    """On how many of the images that both have seen they name the same class, in percent."""
    one, other = in_common(student, teacher)
    if len(one.images) == 0:
        return None
    return float(100 * (one.classes == other.classes).mean())


def worth_a_look(student: Told, teacher: Told | None, most: int) -> np.ndarray:
    """Images in which student and teacher differ, the surest of both first; (n,), n <= `most`.

    Without a teacher: the surest of the student's mistakes.
    """
    if teacher is None:
        wrong = student.classes != student.targets
        order = np.argsort(-student.probabilities[wrong], kind="stable")
        return np.asarray(student.images[wrong][order][:most])
    own, theirs = in_common(student, teacher)
    differ = own.classes != theirs.classes
    sure = np.minimum(own.probabilities, theirs.probabilities)[differ]
    return np.asarray(own.images[differ][np.argsort(-sure, kind="stable")][:most])


@dataclass(kw_only=True)
class Predictions:
    """All that the file holds.

    Args:
        class_names: in the order of the class numbers.
        names: of the validation images, by position.
        examples: thumbnails (PNG or JPEG) of images that are worth a look, by position.
    """

    class_names: list[str]
    names: list[str]
    student: Told | None = None
    teacher: Told | None = None
    examples: dict[int, bytes] = field(default_factory=dict)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the file, old or new and never half.

    Raises:
        RunFailed: it cannot be written.
    """
    # a folder's name stands once, not before each of its 50,000 images
    folder = os.path.commonpath([os.path.dirname(name) for name in predictions.names] or [""])
    prefix = f"{folder}/" if folder not in ("", "/") else ""
    content = {
        "class_names": predictions.class_names,
        "folder": prefix,
        "names": [name[len(prefix) :] for name in predictions.names],
        "student": _columns(predictions.student),
        "teacher": _columns(predictions.teacher),
        "examples": {k: base64.b64encode(v).decode() for k, v in predictions.examples.items()},
    }
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def _columns(told: Told | None) -> dict[str, list[float]] | None:
    if told is None:
        return None
    columns = {f.name: getattr(told, f.name).tolist() for f in fields(told)}
    return {**columns, "probabilities": [round(p, 4) for p in columns["probabilities"]]}


def read_predictions(path: Path) -> Predictions | None:
    """What a run left; None where it left none.

    Raises:
        UserError: the file is not what `write_predictions` makes.
    """
    if not os.path.isfile(path):
        return None
    try:
        content = json.loads(read_small(path, LIMITS.description_bytes))
        return _predictions(content)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, Refused,
            OverflowError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{path} is damaged ({reason}): delete it to do without") from None


def _predictions(content: Mapping[str, Any]) -> Predictions:
    class_names, names = _texts(content["class_names"]), _texts(content["names"])
    folder = str(content["folder"])[: LIMITS.text]
    told = {
        who: _told(content[who], len(names), len(class_names)) if content[who] else None
        for who in ("student", "teacher")
    }
    examples = {int(k): base64.b64decode(v, validate=True) for k, v in content["examples"].items()}
    for position, picture in examples.items():
        if not 0 <= position < len(names) or media_type(picture) is None:
            raise ValueError(f"example {position} is no picture of an image")
    names = [folder + name for name in names]
    return Predictions(class_names=class_names, names=names, **told, examples=examples)


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("names should be a list of texts")
    return [value[: LIMITS.text] for value in values]


def _told(columns: Mapping[str, Any], images: int, classes: int) -> Told:
    integers = {"images": images, "targets": classes, "classes": classes}
    arrays = {name: np.asarray(columns[name], dtype=np.int64) for name in integers}
    probabilities = np.asarray(columns["probabilities"], dtype=np.float64)
    for name, array in arrays.items():
        if array.ndim != 1 or len(array) != len(probabilities):
            raise ValueError(f"{name} has another length than probabilities")
        if len(array) and not (array.min() >= 0 and array.max() < integers[name]):
            raise ValueError(f"{name} is out of range")
    if probabilities.ndim != 1 or not np.all((probabilities >= 0) & (probabilities <= 1)):
        raise ValueError("probabilities are out of range")
    if np.any(np.diff(arrays["images"]) <= 0):
        raise ValueError("images are not ascending")
    return Told(**arrays, probabilities=probabilities)


def media_type(picture: bytes) -> str | None:
    """Of a thumbnail; None for what is none."""
    return next((kind for start, kind in PICTURES.items() if picture.startswith(start)), None)
