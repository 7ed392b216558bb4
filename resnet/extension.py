"""Our method and our data for torchdistill's registries: `dependencies: [resnet.extension]`.

    student:
      auxiliary_model_wrapper:
        key: SimpleRecipeWrapper
        kwargs: {layer: layer4, student_dim: 512, teacher_dim: 512}
      forward_hook: {output: [model.layer4]}
    teacher:
      forward_hook: {output: [layer4]}
    criterion: ... key: SimpleRecipeCriterion, kwargs: {teacher_layer: layer4}

Any other loss of `srd.method.losses` goes by its name: `loss: vkd` among the wrapper's kwargs, or
`loss: {name: vkd, beta: 0.5}`. A loss that needs the images' keys (`crd`) is told how many images there
are beside it, `train_images: 1281167`. Fields that these classes do not know are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from srd.config.layers import Layer, build
from srd.data.digits import DigitImages
from srd.data.image_source import Split
from srd.errors import UserError, explained, nearest
from srd.method.logits import distillation_kl
from srd.method.loss import Loss
from srd.method.losses import LOSSES, LossSettings, create_loss
from srd.models.outputs import dim as dim_of
from srd.strict import STRICT

MODULE_KEY = "simple_recipe"  # where the wrapper leaves its loss and the student's representation


@dataclass(config=STRICT)
class Chosen:
    """The wrapper's `loss:`."""

    loss: LossSettings


@register_auxiliary_model_wrapper
class SimpleRecipeWrapper(AuxiliaryModelWrapper):
    """A student with a loss by name and its projector, so that both are trained and saved.

    Args:
        layer: of the student, whose feature map (B, D_s, H, W) is averaged over its positions, or
            taken position by position (B, HW, D_s) by a loss that reads tokens, or as it is by one
            that reads maps. A loss that reads logits takes (B, C) of any layer, the classifier's say.
        student_dim, teacher_dim: D_s and D_t.
        loss: the name of a loss, or its settings with it, as in the other half's `distill.loss`.
        train_images: how many there are, for a loss that needs their keys.
        settings: without `loss`, those of `srd`: `match`, `alpha`, `bn_eps`, `log_eps`; the defaults
            are the released ResNet code's.

    Raises:
        UserError: the student has no such layer; an unknown loss, or one that reads nothing of the
            student's; settings that the loss does not have; settings beside `loss`; a number of
            images where it is missing, or read by nobody.
    """

    keys: Tensor | None = None  # of the batch, for a loss that needs them

    def __init__(
        self,
        layer: str,
        student_dim: int,
        teacher_dim: int,
        loss: str | Mapping[str, Any] | None = None,
        train_images: int | None = None,
        *,
        student_model: nn.Module,
        device: torch.device,
        device_ids: list[int] | None = None,
        distributed: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__()
        names = [name for name, _ in student_model.named_modules()]
        if layer not in names:
            raise UserError(f"the student has no layer {layer!r}{nearest(layer, names)}")
        self.layer = f"model.{layer}"
        self.model = student_model
        created = _create(loss, settings, student_dim, teacher_dim, train_images)
        self.distillation_loss = created.to(device)
        self.dims = student_dim, teacher_dim

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def secondary_forward(self, io_dict: dict[str, Any]) -> None:
        """Leave the loss and the student's representation (B, D_s) where the criterion finds them."""
        if self.layer not in io_dict:
            raise UserError(f"the student needs `forward_hook: {{output: [{self.layer}]}}`")
        loss = self.distillation_loss
        z_s = read(io_dict[self.layer]["output"], loss)
        check_width(z_s, self.dims[0], f"the student's {self.layer}", "student_dim", loss)
        io_dict[MODULE_KEY] = {"loss": loss, "z_s": z_s, "dim": self.dims[1], "keys": self.keys}


def _create(
    loss: str | Mapping[str, Any] | None,
    settings: dict[str, Any],
    student_dim: int,
    teacher_dim: int,
    train_images: int | None,
) -> Loss:
    if loss is not None and settings:
        raise UserError(
            f"SimpleRecipeWrapper: {', '.join(settings)} beside `loss`: write them into it, "
            "loss: {name: ..., ...}"
        )
    given = {"name": "srd", "match": "elementwise", **settings} if loss is None else loss
    chosen = build(Chosen, [Layer("SimpleRecipeWrapper", {"loss": given})]).loss
    if ("keys" in LOSSES[chosen.name].needs) != (train_images is not None):
        raise UserError(
            f"SimpleRecipeWrapper: the loss {chosen.name!r} "
            + ("needs `train_images`, how many there are" if train_images is None else
               "does not count images: leave train_images out")
        )  # fmt: skip
    with explained(f"SimpleRecipeWrapper: the loss {chosen.name!r}"):
        module = create_loss(
            chosen, student_dim=student_dim, teacher_dim=teacher_dim, train_images=train_images
        )
    if module is None:
        raise UserError(
            f"SimpleRecipeWrapper: the loss {chosen.name!r} compares no representations: for it, "
            "torchdistill's own entries are enough (KDLoss, or no teacher)"
        )
    return module


@register_mid_level_loss
class SimpleRecipeCriterion(nn.Module):
    """repr_weight * the wrapper's loss + kl_weight * KL on logits; the terms stay in `terms`.

    A loss that says that it takes the place of the KL (`Loss.logits`) stands alone.

    Args:
        teacher_layer: what the loss reads of the teacher, as the wrapper's `layer` of the student.
        repr_weight: 2 in the released ResNet code.
        kl_weight, temperature: of the KL, batch mean, as released.
    """

    def __init__(
        self,
        teacher_layer: str,
        repr_weight: float = 2.0,
        kl_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.teacher_layer = teacher_layer
        self.repr_weight, self.kl_weight, self.temperature = repr_weight, kl_weight, temperature
        self.terms: dict[str, Tensor] = {}

    def forward(
        self,
        student_io_dict: dict[str, Any],
        teacher_io_dict: dict[str, Any],
        targets: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        if MODULE_KEY not in student_io_dict:
            raise UserError("SimpleRecipeCriterion needs the student's SimpleRecipeWrapper")
        if self.teacher_layer not in teacher_io_dict:
            raise UserError(f"the teacher needs `forward_hook: {{output: [{self.teacher_layer}]}}`")
        ours = student_io_dict[MODULE_KEY]
        loss: Loss = ours["loss"]
        z_t = read(teacher_io_dict[self.teacher_layer]["output"], loss)
        check_width(z_t, ours["dim"], f"the teacher's {self.teacher_layer}", "teacher_dim", loss)
        kl = loss.logits and distillation_kl(
            student_io_dict["."]["output"], teacher_io_dict["."]["output"], self.temperature
        )
        given = {"targets": targets, "keys": ours["keys"]}
        needed = {name: given[name] for name in loss.needs}
        self.terms = {"repr": loss(ours["z_s"], z_t, **needed)}
        total = self.repr_weight * self.terms["repr"]
        if kl is False:
            return total
        self.terms["kl"] = kl
        return total + self.kl_weight * kl


def read(output: Tensor, loss: Loss) -> Tensor:
    """What a loss reads of a layer's output, in float32 or better.

    Shapes: (B, D, H, W) to its mean (B, D), or to tokens (B, HW, D), or as a map it stays, as do
    (B, D) and (B, N, D).
    """
    output = output.to(torch.promote_types(torch.float32, output.dtype))
    if loss.reads == "tokens":
        return output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
    if loss.reads == "maps":
        return output
    return output.mean(dim=(2, 3)) if output.ndim == 4 else output


def check_width(z: Tensor, dim: int, what: str, name: str, loss: Loss) -> None:
    """Raise a UserError unless `z`, what the loss reads, is `dim` wide (a map: has as many channels)."""
    if loss.reads == "maps" and z.ndim != 4:
        raise UserError(f"{what} is no feature map (B, D, H, W), which the loss reads")
    assert loss.reads is not None
    own = dim_of(z.shape[1:], loss.reads, positions=loss.positions, what=what)
    if own != dim:
        raise UserError(f"{what} is {own} wide, the projector's {name} {dim}")


class Digits(Dataset[tuple[Any, int]]):
    """scikit-learn's digits as a torchvision-like data set of (image, class).

    Args:
        split: `train` (1,297 images) or `val` (500).
        per_class: keep the first n training images of each class.
        transform: of the PIL image (8x8, RGB).
    """

    def __init__(
        self,
        split: Split,
        per_class: int | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.images, self.transform = DigitImages(split, per_class), transform
        self.classes, self.targets = self.images.classes, self.images.targets.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images.load(index)
        return (self.transform(image) if self.transform else image), target
