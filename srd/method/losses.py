"""Losses by name: what a student learns from its teacher besides its targets.

A new one is a file with a class (`srd.method.loss.Loss` says what it owes) and its settings, and
a line in `LOSSES`, here or in that file. Configurations, both halves' tasks and torchdistill's boxes
follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, PlainValidator, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from srd.errors import UserError
from srd.method.ablation import AblationLoss
from srd.method.crd import CRD
from srd.method.feature_losses import ICKD, AttentionTransfer, FitNet
from srd.method.logit_losses import DIST, DKD, StandardisedKD
from srd.method.loss import Loss
from srd.method.simple_recipe import SimpleRecipeLoss
from srd.method.vkd import VkDLoss
from srd.strict import STRICT


@dataclass(config=STRICT)
class KDSettings:
    name: Literal["kd"] = "kd"


class KD(Loss):
    """Hinton's knowledge distillation: the KL divergence to the teacher's logits, and no more."""

    reads, logits, settings = None, True, KDSettings


@dataclass(config=STRICT)
class NoSettings:
    name: Literal["none"] = "none"


class NoLoss(Loss):
    """The student alone: no teacher is needed."""

    reads, logits, settings = None, False, NoSettings


LOSSES: dict[str, type[Loss]] = {
    "srd": SimpleRecipeLoss,
    "kd": KD,
    "none": NoLoss,
    "vkd": VkDLoss,
    "dkd": DKD,
    "dist": DIST,
    "kd_ls": StandardisedKD,
    "fitnet": FitNet,
    "at": AttentionTransfer,
    "ickd": ICKD,
    "crd": CRD,
    "ablation": AblationLoss,
}


def _named(value: Any) -> Any:
    """`vkd` as `{name: vkd}`: the settings that are left out are the loss's own."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        return value
    raise PydanticCustomError("loss", "Input should be the name of a loss, or its settings by name")


def _of_the_loss(value: Any) -> Any:
    """The settings of the loss that `value` names, of those that are in the table by now."""
    kinds: Any = reduce(or_, (loss.settings for loss in LOSSES.values()))
    by_name = TypeAdapter(Annotated[kinds, Field(discriminator="name")])
    return by_name.validate_python(_named(value))


if TYPE_CHECKING:

    class LossSettings(Protocol):
        """The settings of one of `LOSSES`."""

        name: Any

else:
    LossSettings = Annotated[Any, PlainValidator(_of_the_loss)]


def create_loss(
    settings: LossSettings,
    *,
    student_dim: int,
    teacher_dim: int,
    across_ranks: bool = True,
    train_images: int | None = None,
) -> Loss | None:
    """The module of a loss, its parameters drawn from torch's global generator.

    Args:
        settings: as a configuration holds them; `name` says which loss.
        student_dim, teacher_dim: widths of what it reads.
        across_ranks: statistics of the global batch (default), or of each rank's share.
        train_images: how many there are, for a loss that needs their keys.

    Returns:
        None for a loss that reads nothing.

    Raises:
        UserError: the widths do not fit the settings.
    """
    loss = LOSSES[settings.name]
    if loss.reads is None:
        return None
    fields = {field.name for field in dataclasses.fields(loss.settings)} - {"name"}
    given = {name: getattr(settings, name) for name in fields}
    if "keys" in loss.needs:
        given["train_images"] = train_images
    try:
        module = loss(student_dim, teacher_dim, **given)
    except ValueError as error:
        raise UserError(f"distill.loss {settings.name}: {error}") from None
    if not across_ranks:
        module.use_local_statistics()
    return module
