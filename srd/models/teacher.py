"""Teachers: frozen, in evaluation mode for good, from files that are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from srd.config.fields import Teacher
from srd.device import Precision
from srd.errors import UserError
from srd.files.hashes import verify
from srd.files.released import in_ckpts
from srd.files.weights import load_file, load_into
from srd.models import timm_models
from srd.models.outputs import Output
from srd.models.students import create_network, find


class Normalization(NamedTuple):
    """Channel means and standard deviations that images were normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


class FrozenTeacher(nn.Module):
    """A model that is only read: no gradients, and batch-norm statistics that never move.

    Args:
        model: the network; it is frozen in place.
        read: calls it on images (B, 3, H, W).
        given: how the student's images are normalised.
        expected: how the teacher wants them; where it differs, images are converted.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[nn.Module, Tensor], Output],
        given: Normalization,
        expected: Normalization,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.read = read
        self.converts = given != expected
        mean, std, to_mean, to_std = (
            torch.tensor(values).view(3, 1, 1) for values in (*given, *expected)
        )
        self.register_buffer("scale", std / to_std)
        self.register_buffer("shift", (mean - to_mean) / to_std)
        self.eval()

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode, whatever `mode` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Output:
        if self.converts:
            images = images * self.scale + self.shift
        return self.read(self.model, images)


PAPER_TEACHER = "regnety_160.deit_in1k"
PAPER_FILE = "regnety_160-a5fe301d.pth"


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher, what it is called, where its weights came from, and their hash (None: the Hub).

    It is no module, so that whoever holds it neither trains it, nor saves it.
    """

    model: FrozenTeacher
    name: str
    source: str
    sha256: str | None

    def __call__(self, images: Tensor) -> Output:
        """What it says of images (B, 3, H, W) that are normalised as the student's."""
        output: Output = self.model(images)
        return output

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, C), as an evaluation wants them."""
        return self(images).logits


def open_teacher(
    teacher: Teacher,
    *,
    num_classes: int,
    image_size: int,
    given: Normalization,
    precision: Precision,
) -> LoadedTeacher:
    """`load_teacher`, on its device."""
    loaded = load_teacher(teacher, num_classes=num_classes, image_size=image_size, given=given)
    loaded.model.to(precision.device, precision.dtype)
    return loaded


def load_teacher(
    teacher: Teacher, *, num_classes: int, image_size: int, given: Normalization
) -> LoadedTeacher:
    """Build the configured teacher, load and verify its weights, freeze it.

    Args:
        num_classes: of the data; the teacher's must be the same.
        image_size: pixels; it must be able to read images of this size.
        given: how the student's images are normalised.

    Raises:
        UserError: unknown model, missing or foreign file, wrong hash, no network, a size that it
            cannot read.
    """
    name = PAPER_TEACHER if teacher.name == "regnety_160" else teacher.name
    file = Path(teacher.checkpoint).expanduser() if teacher.checkpoint else None
    if file is None and name == PAPER_TEACHER:
        file = in_ckpts(PAPER_FILE)
    recorded: Mapping[str, Any] = {}
    if file is None:
        model, read = _from_hub(name, num_classes, image_size), timm_models.read
        source, digest = f"Hub weights {name}", None
    else:
        find(name, role="teacher")  # an unknown name is told before a missing file
        source, digest = str(file), verify(file)
        content = load_file(file)
        recorded = _recorded_normalization(content)
        model, read = create_network(
            name, num_classes=num_classes, image_size=image_size, role="teacher"
        )
        load_into(model, file, f"{name} with {num_classes} classes", content=content)
    usual = getattr(model, "pretrained_cfg", {})
    expected = Normalization(
        tuple(teacher.mean or recorded.get("mean") or usual.get("mean") or given.mean),
        tuple(teacher.std or recorded.get("std") or usual.get("std") or given.std),
    )
    frozen = FrozenTeacher(model, read, given, expected)
    timm_models.check_reading(
        frozen, name, num_classes=num_classes, image_size=image_size, role="teacher"
    )
    return LoadedTeacher(frozen, name, source, digest)


def _recorded_normalization(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Mean and standard deviation in a checkpoint of our own runs; {} for anyone else's."""
    data = content.get("config", {})
    data = data.get("data", {}) if isinstance(data, dict) else {}
    return data if isinstance(data, dict) and "mean" in data and "std" in data else {}


def _from_hub(name: str, num_classes: int, image_size: int) -> Any:
    if find(name, role="teacher") is not None:
        raise UserError(f"the teacher {name} has no weights on the Hub: set --teacher-checkpoint")
    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if published is not None:
        _check_classes(name, published.num_classes, num_classes)
    try:
        model = timm_models.create_classifier(
            name, num_classes=num_classes, image_size=image_size, pretrained=True, role="teacher"
        )
    except timm_models.HubError as error:
        mend = "set --teacher-checkpoint FILE"
        if name == PAPER_TEACHER:
            mend = f"put {PAPER_FILE} into ckpts/ (see ckpts/README.md), or {mend}"
        raise UserError(f"no teacher: {error}; {mend}") from error
    _check_classes(name, model.pretrained_cfg["num_classes"], num_classes)
    return model


def _check_classes(name: str, published: int, num_classes: int) -> None:
    """Raise a UserError where timm would give the weights a new, random, head."""
    if published != num_classes:
        raise UserError(
            f"the Hub weights {name} know {published} classes, the data has {num_classes}: train a "
            "teacher on it (--train_teacher) and set --teacher-checkpoint"
        )
