"""Teachers: frozen, in evaluation mode for good, from files that are what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from srd.config.fields import Config, Teacher
from srd.device import Precision
from srd.errors import UserError
from srd.files.checkpoint import explain_mismatch, load_file, weights_in
from srd.files.hashes import verify
from srd.files.released import in_ckpts
from srd.models.outputs import TeacherOutput
from srd.models.timm_models import check_name, create_classifier, read_timm


class Normalization(NamedTuple):
    """Channel means and standard deviations that images were normalised with."""

    mean: Sequence[float]
    std: Sequence[float]


class FrozenTeacher(nn.Module):
    """A model that is only read: no gradients, and batch-norm statistics that never move.

    Args:
        model: the network; it is frozen in place.
        read: calls it on images (B, 3, H, W) and returns a `TeacherOutput`.
        given: how the student's images are normalised.
        expected: how the teacher wants them; where it differs, images are converted.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        read: Callable[[nn.Module, Tensor], TeacherOutput],
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
    def forward(self, images: Tensor) -> TeacherOutput:
        if self.converts:
            images = images * self.scale + self.shift
        return self.read(self.model, images)


PAPER_TEACHER = "regnety_160.deit_in1k"


PAPER_FILE = "regnety_160-a5fe301d.pth"


class LoadedTeacher(NamedTuple):
    """A teacher, what it is called, where its weights came from, and their hash (None: the Hub)."""

    model: FrozenTeacher
    name: str
    source: str
    sha256: str | None

    def classify(self, images: Tensor) -> Tensor:
        """Logits (B, C), as an evaluation wants them."""
        output: TeacherOutput = self.model(images)
        return output.logits


def open_teacher(config: Config, num_classes: int, precision: Precision) -> LoadedTeacher:
    """The configured teacher on its device, for images normalised as the configuration says."""
    given = Normalization(config.data.mean, config.data.std)
    teacher = load_teacher(config.teacher, num_classes, config.model.image_size, given)
    teacher.model.to(precision.device, precision.dtype)
    return teacher


def load_teacher(
    config: Teacher, num_classes: int, image_size: int, given: Normalization
) -> LoadedTeacher:
    """Build the configured teacher, load and verify its weights, freeze it.

    Args:
        num_classes: of the data; the teacher's must be the same.
        image_size: pixels; for models that are built for one size.
        given: how the student's images are normalised.

    Raises:
        UserError: unknown model, missing or foreign file, wrong hash, no network.
    """
    name = PAPER_TEACHER if config.name == "regnety_160" else config.name
    check_name(name)
    file = Path(config.checkpoint).expanduser() if config.checkpoint else None
    if file is None and name == PAPER_TEACHER:
        file = in_ckpts(PAPER_FILE)
    recorded: dict[str, Any] = {}
    if file is None:
        model, source, digest = (
            _from_hub(name, num_classes, image_size),
            f"Hub weights {name}",
            None,
        )
    else:
        digest, source = verify(file), str(file)
        content = load_file(file)
        recorded = _recorded_normalization(content)
        model = create_classifier(name, num_classes, image_size)
        weights = weights_in(content, file)
        explain_mismatch(model.state_dict(), weights, file, f"{name} with {num_classes} classes")
        model.load_state_dict(weights)
    usual = model.pretrained_cfg
    expected = Normalization(
        tuple(config.mean or recorded.get("mean") or usual.get("mean") or given.mean),
        tuple(config.std or recorded.get("std") or usual.get("std") or given.std),
    )
    return LoadedTeacher(FrozenTeacher(model, read_timm, given, expected), name, source, digest)


def _recorded_normalization(content: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation in a checkpoint of our own runs; {} for anyone else's."""
    data = content.get("config", {})
    data = data.get("data", {}) if isinstance(data, dict) else {}
    return data if isinstance(data, dict) and "mean" in data and "std" in data else {}


def feature_width(teacher: FrozenTeacher, image_size: int) -> int:
    """D_t, found by looking at one black image."""
    black = torch.zeros(1, 3, image_size, image_size).to(teacher.scale)
    try:
        features: Tensor = teacher(black).features
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"the teacher cannot read images of {image_size}x{image_size} pixels ({reason}): set a "
            "larger model.image_size, or take another teacher"
        ) from None
    return features.shape[1]


def _from_hub(name: str, num_classes: int, image_size: int) -> Any:
    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if published is not None and published.num_classes != num_classes:
        raise UserError(
            f"the Hub weights {name} know {published.num_classes} classes, the data has "
            f"{num_classes}: train a teacher on it (--train_teacher) and set --teacher-checkpoint"
        )
    try:
        return create_classifier(name, num_classes, image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # the Hub client's and its HTTP library's have no common class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"no teacher: {name} is not in ckpts/ and the Hub did not answer ({reason}); put "
            f"{PAPER_FILE} into ckpts/ (see ckpts/README.md) or set --teacher-checkpoint FILE"
        ) from None
