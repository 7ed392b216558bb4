"""The teacher of the DeiT half: RegNetY-160, or any timm model with any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from srd.config.fields import Config, Teacher
from srd.device import Precision
from srd.errors import UserError, nearest
from srd.files.checkpoint import explain_mismatch, load_file, weights_in
from srd.files.released import in_ckpts
from srd.models.teacher import FrozenTeacher, Normalization, TeacherOutput, verify

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


def check_name(name: str) -> None:
    """Raise a UserError that names the nearest unless timm has the model, and the tag if one is given."""
    if name.startswith("hf-hub:"):
        return
    bare = name.split(".")[0]
    if not timm.is_model(bare):
        hint = nearest(bare, timm.list_models())
        raise UserError(f"unknown teacher {name!r}{hint}: not a timm model")
    tagged = timm.list_pretrained(f"{bare}.*")
    if "." in name and name not in tagged:
        raise UserError(f"timm has no weights {name!r}{nearest(name, tagged)}")


def create_classifier(
    name: str, num_classes: int, image_size: int, pretrained: bool = False
) -> Any:
    """A timm classifier by name; an unknown name is a UserError with the nearest known one."""
    check_name(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "pretrained": pretrained}
    try:
        fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if fixed is not None and fixed.fixed_input_size:
            arguments["img_size"] = image_size
        return timm.create_model(name, **arguments)
    except RuntimeError as error:
        if "retrained" in str(error):  # timm: an unknown tag, or no weights for this model
            raise UserError(
                f"timm has no weights {name!r}: {' '.join(str(error).split())}"
            ) from None
        raise


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


def _recorded_normalization(content: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation in a checkpoint of our own runs; {} for anyone else's."""
    data = content.get("config", {})
    data = data.get("data", {}) if isinstance(data, dict) else {}
    return data if isinstance(data, dict) and "mean" in data and "std" in data else {}


def read_timm(model: Any, images: Tensor) -> TeacherOutput:
    """Globally averaged features and logits of any timm classifier.

    Feature maps, (B, D, H, W) or (B, H, W, D), are averaged over their positions; tokens are
    pooled by the model's own head.
    """
    features = model.forward_features(images)
    if not isinstance(features, Tensor):
        raise UserError("this teacher has several feature maps: take one with a single last map")
    logits = model.forward_head(features)
    if features.ndim == 4:
        channels_first = features.shape[1] == model.num_features
        pooled = features.mean(dim=(2, 3) if channels_first else (1, 2))
    else:
        pooled = model.forward_head(features, pre_logits=True)
    return TeacherOutput(pooled.flatten(1), logits)


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
