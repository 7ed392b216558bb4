"""Teachers: frozen, in evaluation mode for good, from files that are what they claim to be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from srd.config.fields import IMAGENET_MEAN, IMAGENET_STD, Data, Teacher
from srd.config.layers import Layer, build
from srd.device import Precision, bfloat16_note
from srd.errors import UserError
from srd.files.hashes import sha256
from srd.files.limits import LIMITS
from srd.files.locate import locate
from srd.files.opened import Refused, read_small
from srd.files.released import in_ckpts
from srd.files.weights import load_claimed, weights_in
from srd.models import timm_models
from srd.models.frozen import FrozenTeacher, Normalization
from srd.models.initial import Fit, head_names, load_fitting
from srd.models.outputs import Output, Read, Representation, width
from srd.models.recorded import RecordedTeacher
from srd.models.students import create_network, find
from srd.models.timm_models import CannotRead

PAPER_TEACHER = "regnety_160.deit_in1k"
PAPER_FILE = "regnety_160-a5fe301d.pth"
SIZES = range(8, 8193)  # that `teacher.image_size` takes


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher, what it is called, where its weights came from, and their hash (None: the Hub).

    It is no module, so that whoever holds it neither trains it, nor saves it.

    Args:
        knows_classes: whether its logits are of the data's classes; else its features teach alone.
        class_names: what it was trained on; None where its file does not say.
        notes: what a user should know of how it was made to fit.
    """

    model: FrozenTeacher
    name: str
    source: str
    sha256: str | None
    knows_classes: bool = True
    class_names: list[str] | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, images: Tensor) -> Output:
        """What it says of images (B, 3, H, W) that are normalised as the student's."""
        output: Output = self.model(images)
        return output

    def width(self, reads: Representation, image_size: int, positions: int = 1) -> int:
        """D of what it says; a UserError where it has none, or a map of fewer positions."""
        return width(self.model, reads, image_size=image_size, role="teacher", positions=positions)

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
    if teacher.bf16:
        return replace(loaded, notes=(*loaded.notes, bfloat16_note(precision.device)))
    return loaded


def load_teacher(
    teacher: Teacher, *, num_classes: int, image_size: int, given: Normalization
) -> LoadedTeacher:
    """Build the configured teacher, load and verify its weights, freeze it.

    One that was trained on other classes, or has no head, teaches by its features alone; one that
    cannot read images of this size reads resized ones.

    Args:
        num_classes: of the data.
        image_size: pixels of the student's images.
        given: how they are normalised.

    Raises:
        UserError: unknown model, missing or foreign file, wrong hash, no network, a size that it
            cannot read.
    """
    name = full_teacher_name(teacher.name)
    find(name, role="teacher")  # an unknown name is told before a missing file
    file = weights_of(teacher)
    source = partial(_from_file, file) if file else _from_hub
    size = teacher.image_size
    try:
        opened, frozen = _open(source, teacher, name, num_classes, size or image_size, given)
    except CannotRead as error:
        if size is not None or (size := error.size) is None:
            raise
        opened, frozen = _open(source, teacher, name, num_classes, size, given)
    frozen.size = size
    return LoadedTeacher(
        model=frozen,
        name=name,
        source=opened.source,
        sha256=opened.sha256,
        knows_classes=not opened.fit.new_head,
        class_names=_class_names(opened.content),
        notes=tuple(_notes(opened, name, num_classes, image_size, size)),
    )


def full_teacher_name(name: str) -> str:
    """With timm's tag, for the paper's."""
    return PAPER_TEACHER if name == "regnety_160" else name


def weights_of(teacher: Teacher) -> Path | None:
    """The file of a teacher's weights; None where they come from the Hub by its name."""
    file: str | Path | None = teacher.checkpoint
    if file is None and full_teacher_name(teacher.name) == PAPER_TEACHER:
        file = in_ckpts(PAPER_FILE)
    return _weights_file(file) if file else None


def known_sha256(teacher: Teacher) -> str | None:
    """The SHA-256 of a teacher's file, without loading it; None where there is none on this machine."""
    if str(teacher.checkpoint or "").startswith("hf-hub:"):
        return None
    try:
        file = weights_of(teacher)
        return sha256(file) if file is not None else None
    except (UserError, OSError):  # told by who loads it
        return None


def _weights_file(where: str | Path) -> Path:
    """A file's place; of a run, the checkpoint that says what its images and classes were."""
    checkpoints = Path(os.path.expanduser(where)) / "checkpoints"
    own = [checkpoints / "best.pth", checkpoints / "last.pth"]
    return next((file for file in own if os.path.isfile(file)), None) or locate(where)


def check_knows_classes(
    teacher: LoadedTeacher | RecordedTeacher, num_classes: int, reader: str
) -> None:
    """Raise a UserError where `reader` needs the logits of a teacher that has none for the data."""
    if not teacher.knows_classes:
        raise UserError(
            f"the teacher {teacher.name} has no head for the {num_classes} classes of the data, and "
            f"{reader} reads its logits: train one on the data (--train_teacher), or take a loss that "
            "reads features, such as srd"
        )


class _Opened(NamedTuple):
    """A teacher's network with its weights, before it is frozen."""

    model: Any
    read: Read
    source: str
    sha256: str | None
    content: Mapping[str, Any]
    fit: Fit


def _open(
    source: Callable[..., _Opened],
    teacher: Teacher,
    name: str,
    num_classes: int,
    image_size: int,
    given: Normalization,
) -> tuple[_Opened, FrozenTeacher]:
    """The network and its frozen form, which has looked at one image of this size."""
    opened = source(name, num_classes, image_size)
    recorded = _recorded(opened.content, opened.source) or Normalization((), ())
    if len(recorded.mean) not in (0, 3, len(given.mean)):
        raise UserError(
            f"the teacher {name} reads pictures of {len(recorded.mean)} channels, and the student of "
            f"{len(given.mean)}: set model.in_chans to {len(recorded.mean)}, or take another teacher"
        )
    usual = getattr(opened.model, "pretrained_cfg", {})
    other = given if len(given.mean) == 3 else Normalization(IMAGENET_MEAN, IMAGENET_STD)
    expected = Normalization(
        tuple(teacher.mean or recorded.mean or usual.get("mean") or other.mean),
        tuple(teacher.std or recorded.std or usual.get("std") or other.std),
    )
    frozen = FrozenTeacher(opened.model, opened.read, given, expected, bf16=teacher.bf16)
    timm_models.check_reading(
        frozen, name, num_classes=num_classes, image_size=image_size, role="teacher"
    )
    return opened, frozen


def _from_file(file: Path, name: str, num_classes: int, image_size: int) -> _Opened:
    digest, content = load_claimed(file)
    told = content if "config" in content else _told_by_run(file)
    recorded = _recorded(told, str(file))
    model, read = create_network(
        name, num_classes=num_classes, image_size=image_size, role="teacher",
        in_chans=len(recorded.mean) if recorded else 3,
    )  # fmt: skip
    what = f"{name} with {num_classes} classes"
    fit = load_fitting(model, weights_in(content, file), file, what)
    return _Opened(model, read, str(file), digest, told, fit)


def _told_by_run(file: Path) -> dict[str, Any]:
    """What the checkpoints of a run said, which keeps none, and its best student alone."""
    try:
        result = json.loads(read_small(file.parent / "result.json", LIMITS.description_bytes))
    except (OSError, ValueError, RecursionError, Refused):
        return {}
    recipe = result.get("recipe") if isinstance(result, dict) else None
    return {"config": recipe} if isinstance(recipe, dict) else {}


def _from_hub(name: str, num_classes: int, image_size: int) -> _Opened:
    if find(name, role="teacher") is not None:
        raise UserError(f"the teacher {name} has no weights on the Hub: set --teacher-checkpoint")
    try:
        model = timm_models.create_classifier(
            name, num_classes=num_classes, image_size=image_size, pretrained=True, role="teacher"
        )
    except timm_models.HubError as error:
        mend = "set --teacher-checkpoint FILE"
        if name == PAPER_TEACHER:
            mend = f"put {PAPER_FILE} into ckpts/ (see ckpts/README.md), or {mend}"
        raise UserError(f"no teacher: {error}; {mend}") from error
    foreign = model.pretrained_cfg["num_classes"] != num_classes  # timm gave it a new head
    fit = Fit(new_head=head_names(model) if foreign else ())
    return _Opened(model, timm_models.read, f"Hub weights {name}", None, {}, fit)


def _notes(
    opened: _Opened, name: str, num_classes: int, image_size: int, size: int | None
) -> Iterator[str]:
    fit, trained_at = opened.fit, _section(opened.content, "model").get("image_size")
    if fit.new_head:
        yield (
            f"the teacher {name} has no head for the {num_classes} classes of the data: it teaches "
            "by its features alone, without the KL divergence, and is not measured"
        )
    if fit.resized:
        yield f"the teacher {name}: {', '.join(fit.resized)} resized for {size or image_size} pixels"
    if size is not None:
        yield f"the teacher {name} reads {size}x{size} pixels: images are resized for it"
    elif type(trained_at) is int and trained_at in SIZES and trained_at != image_size:
        yield (
            f"the teacher {name} was trained on {trained_at}x{trained_at} pixels and reads "
            f"{image_size}x{image_size}: --set teacher.image_size={trained_at} resizes images for it"
        )


def _class_names(content: Mapping[str, Any]) -> list[str] | None:
    """What one of our own runs was trained on, as its checkpoint says."""
    names = _section(content, "identity").get("class_names")
    return [str(name) for name in names] if isinstance(names, list) else None


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the settings in one of our own checkpoints; an empty one elsewhere."""
    config = content.get("config")
    section = config.get(name) if isinstance(config, dict) else None
    return section if isinstance(section, dict) else {}


def _recorded(content: Mapping[str, Any], source: str) -> Normalization | None:
    """How the images of one of our own runs were normalised, as its checkpoint says; None elsewhere.

    Raises:
        UserError: they are no such numbers.
    """
    data = _section(content, "data")
    if not {"mean", "std"} <= set(data):
        return None
    given = {name: data[name] for name in ("mean", "std")}
    checked = build(Data, [Layer(f"the settings in {source}", given)])
    if len(checked.mean) != len(checked.std) or len(checked.mean) not in (1, 3, 4):
        raise UserError(
            f"mean in the settings in {source} should be 1, 3 or 4 numbers, as many as std"
        )
    return Normalization(tuple(checked.mean), tuple(checked.std))
