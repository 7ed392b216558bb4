"""Students by name: those that are registered, and every timm classifier.

`STUDENTS["mine"] = Builder(build, read)` registers one. So that it is there without an import, its
package names the module that does so as an entry point `mine` of the group `srd.students`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from srd.errors import UserError
from srd.installed import not_installed
from srd.models import cifar, cifar_parts, timm_models
from srd.models.outputs import Output, Read

GROUP = "srd.students"
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Builder:
    """How a student is made and read.

    Args:
        build: called with `num_classes`, `image_size` and `drop_path`; returns the network, which
            gives images (B, 3, H, W) their logits (B, C) in evaluation mode.
        read: gives its `Output`; the default fits whatever has timm's `forward_features` and
            `forward_head`.
    """

    build: Callable[..., nn.Module]
    read: Read = timm_models.read


def _of_cifar(network: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def build(*, num_classes: int, image_size: int, drop_path: float) -> nn.Module:
        if drop_path > 0:
            raise UserError("networks for CIFAR have no drop path: set model.drop_path to 0")
        return network(num_classes=num_classes)

    return build


STUDENTS: dict[str, Builder] = {
    name: Builder(_of_cifar(network), cifar_parts.read) for name, network in cifar.NETWORKS.items()
}


class Student(nn.Module):
    """A network that is trained, and how it is read: images (B, 3, H, W) to `Output`.

    Args:
        model: the network; what is evaluated, exported and saved, under its own names.
        reads_features: off where only logits are needed.
        in_chans: channels of the images.
    """

    def __init__(
        self, model: nn.Module, read: Read, reads_features: bool = True, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.model, self.read, self.reads_features = model, read, reads_features

    def forward(self, images: Tensor) -> Output:
        return self.read(self.model, images, features=self.reads_features)


def open_student(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int = 224,
    drop_path: float = 0.0,
    role: str = "student",
    reads_features: bool = True,
    in_chans: int = 3,
) -> Student:
    """A student by name that can read images of this size; its weights come from torch's seed.

    A timm model with a second, distilled, head gives the logits of both in training.

    Args:
        role: teacher, for the messages, where it is trained to become one.
        in_chans: channels of the images.

    Raises:
        UserError: as `create_network`, or it is no classifier, or its features cannot be pooled.
    """
    model, read = create_network(
        name, num_classes=num_classes, image_size=image_size, drop_path=drop_path, role=role,
        in_chans=in_chans,
    )  # fmt: skip
    if hasattr(model, "set_distilled_training"):
        model.set_distilled_training(True)
    student = Student(model, read, reads_features, in_chans)
    timm_models.check_reading(
        student, name, num_classes=num_classes, image_size=image_size, role=role
    )
    return student


def create_student(
    name: str, *, num_classes: int = 1000, image_size: int = 224, drop_path: float = 0.0
) -> Any:
    """The plain network of a student by name, with random weights: `"tiny"`, or any timm model.

    Raises:
        UserError: an unknown name, no classes, an image size or a drop path that it does not take.
    """
    network, _ = create_network(
        name, num_classes=num_classes, image_size=image_size, drop_path=drop_path
    )
    return network


def create_network(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    drop_path: float = 0.0,
    role: str = "student",
    in_chans: int = 3,
) -> tuple[Any, Read]:
    """A registered network or a timm classifier by name, and how it is read; see `create_student`."""
    if (builder := find(name, role=role)) is not None:
        if in_chans != 3:
            raise UserError(
                f"the {role} {name} reads pictures of 3 channels, and model.in_chans is {in_chans}: "
                "take one of timm's"
            )
        network = builder.build(num_classes=num_classes, image_size=image_size, drop_path=drop_path)
        return network, builder.read
    network = timm_models.create_classifier(
        name, num_classes=num_classes, image_size=image_size, drop_path=drop_path, role=role,
        in_chans=in_chans,
    )  # fmt: skip
    return network, timm_models.read


def is_batch_normed(
    name: str, *, image_size: int, role: str = "student", in_chans: int = 3
) -> bool:
    """Whether all norms on a network's maps are batch norms; it is built without memory if it can be.

    Raises:
        UserError: as `create_network`.
    """

    def build() -> nn.Module:
        return create_network(
            name, num_classes=2, image_size=image_size, role=role, in_chans=in_chans
        )[0]

    try:
        with torch.device("meta"):
            network = build()
    except UserError:
        raise
    except Exception:  # some networks compute with their buffers, which have no data there
        network = build()
    norms = [m for m in network.modules() if isinstance(m, NORMS)]
    return bool(norms) and all(isinstance(norm, nn.BatchNorm2d) for norm in norms)


def find(name: str, *, role: str = "student") -> Builder | None:
    """The registered builder of that name; None for timm's models.

    Raises:
        UserError: neither has it (with the nearest name), or its module cannot be imported.
    """
    if name in STUDENTS:
        return STUDENTS[name]
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name in entries:
        _load(entries[name])
        return STUDENTS[name]
    try:
        timm_models.check_name(name, role=role, others=[*STUDENTS, *entries])
    except UserError as error:
        if STUDENTS or entries:
            raise
        raise UserError(f"{error}; {not_installed()}") from None
    return None


def _load(entry: metadata.EntryPoint) -> None:
    """Import the module that registers a student."""
    try:
        entry.load()
    except ImportError as error:
        raise UserError(f"the student {entry.name} cannot be imported ({error})") from error
    if entry.name not in STUDENTS:
        raise UserError(f"{entry.value} does not register the student {entry.name}")
