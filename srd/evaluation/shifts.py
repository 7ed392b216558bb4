"""How far a network moves with its images: what a transformer may learn from a convolutional teacher.

The paper's table 7 asks it of its students. Here an image is rolled by one step of the last feature map,
so nothing leaves it, and the map is compared with the rolled map of the image as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from srd.config.fields import Config
from srd.data.inputs import inputs_of, sample
from srd.data.loader import to_device
from srd.device import Precision, choose_device
from srd.files.weights import load_into
from srd.models.outputs import Output
from srd.models.students import open_student

IMAGES = 512  # at most, spread evenly over the validation images


class Reads(Protocol):
    """A network as `srd.models.students.Student` reads it."""

    def __call__(self, images: Tensor) -> Output: ...


class ShiftError(NamedTuple):
    """What a shift by one step of the feature map changes.

    Args:
        features: mean over images and both directions of |f(T x) - T f(x)| / |f(x)|, with f the last
            feature map: 0 of an equivariant network. None without a map, or of one position.
        same_class: of 100 images, how many keep their class; None where it was not measured.
    """

    features: float | None
    same_class: float | None


@torch.no_grad()
def shift_error(network: Reads, batches: Iterable[Tensor], steps: int | None = None) -> ShiftError:
    """Measure a network in evaluation mode.

    Args:
        batches: images (B, 3, H, W).
        steps: that a side has, where the network has no map to tell; default 8.
    """
    errors: list[Tensor] = []
    same: list[Tensor] = []
    for images in batches:
        plain = network(images)
        maps = plain.read("maps")
        if maps is not None and maps.shape[2] * maps.shape[3] == 1:
            maps = None
        rows, columns = maps.shape[2:] if maps is not None else (steps or 8, steps or 8)
        for axis, count in ((2, rows), (3, columns)):
            moved = network(images.roll(images.shape[axis] // count, axis))
            same.append(moved.logits.argmax(1) == plain.logits.argmax(1))
            if maps is not None:
                there = moved.read("maps")
                assert there is not None
                errors.append(_relative(there, maps.roll(1, axis)))
    found = float(torch.cat(errors).mean()) if errors else None
    return ShiftError(found, 100 * float(torch.cat(same).double().mean()))


def _relative(one: Tensor, other: Tensor) -> Tensor:
    """|one - other| / |other| of each image (B,), in float64."""
    one, other = one.double().flatten(1), other.double().flatten(1)
    return (one - other).norm(dim=1) / other.norm(dim=1).clamp_min(1e-12)


def shift_error_of(config: Config, checkpoint: Path) -> ShiftError:
    """`shift_error` of a run's student, on its validation images.

    Raises:
        UserError: as `srd.evaluation.of_checkpoint.evaluate_checkpoint`.
    """
    device = choose_device(config.device)
    size = config.model.image_size
    inputs = sample(inputs_of(config, training=False, pin_memory=False), IMAGES)
    student = open_student(config.model.name, num_classes=inputs.num_classes, image_size=size)
    load_into(student.model, checkpoint, config.model.name)
    precision = Precision.choose(config.amp, device)
    student.to(device, precision.dtype).eval()
    batches = (to_device(batch, device, precision.dtype)[0] for batch in inputs.val)
    with precision.autocast():
        return shift_error(student, batches)
