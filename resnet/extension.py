"""Our method and our data for torchdistill's registries: `dependencies: [resnet.extension]`.

    student:
      auxiliary_model_wrapper:
        key: SimpleRecipeWrapper
        kwargs: {layer: layer4, student_dim: 512, teacher_dim: 512}
      forward_hook: {output: [model.layer4]}
    teacher:
      forward_hook: {output: [layer4]}
    criterion: ... key: SimpleRecipeCriterion, kwargs: {teacher_layer: layer4}

`srd.method.simple_recipe` holds the mathematics. Fields that these classes do not know are errors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchdistill.losses.registry import register_mid_level_loss
from torchdistill.models.registry import register_auxiliary_model_wrapper
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from srd.data.digits import DigitImages
from srd.data.image_source import Split
from srd.errors import UserError, nearest
from srd.method.logits import distillation_kl
from srd.method.simple_recipe import Match, SimpleRecipeLoss

MODULE_KEY = "simple_recipe"  # where the wrapper leaves its loss and the student's representation


@register_auxiliary_model_wrapper
class SimpleRecipeWrapper(AuxiliaryModelWrapper):
    """A student with its projector, so that both are trained and saved.

    Args:
        layer: of the student, whose feature map (B, D_s, H, W) is averaged over its positions.
        student_dim, teacher_dim: D_s and D_t.
        match, alpha, bn_eps, log_eps: of `srd.method.simple_recipe.SimpleRecipeLoss`; the defaults are the
            released ResNet code's.

    Raises:
        UserError: the student has no such layer, or its width is not `student_dim`.
    """

    def __init__(
        self,
        layer: str,
        student_dim: int,
        teacher_dim: int,
        match: Match = "elementwise",
        alpha: float = 4.0,
        bn_eps: float | None = None,
        log_eps: float | None = None,
        *,
        student_model: nn.Module,
        device: torch.device,
        device_ids: list[int] | None = None,
        distributed: bool = False,
    ) -> None:
        super().__init__()
        names = [name for name, _ in student_model.named_modules()]
        if layer not in names:
            raise UserError(f"the student has no layer {layer!r}{nearest(layer, names)}")
        self.layer = f"model.{layer}"
        self.model = student_model
        self.distillation_loss = SimpleRecipeLoss(
            student_dim, teacher_dim, match, alpha, bn_eps, log_eps
        ).to(device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def secondary_forward(self, io_dict: dict[str, Any]) -> None:
        """Leave the loss and the student's representation (B, D_s) where the criterion finds them."""
        if self.layer not in io_dict:
            raise UserError(f"the student needs `forward_hook: {{output: [{self.layer}]}}`")
        z_s = pooled(io_dict[self.layer]["output"])
        wanted = self.distillation_loss.projector.in_features
        if z_s.shape[1] != wanted:
            raise UserError(
                f"the student's {self.layer} is {z_s.shape[1]} wide, the projector's student_dim {wanted}"
            )
        io_dict[MODULE_KEY] = {"loss": self.distillation_loss, "z_s": z_s}


@register_mid_level_loss
class SimpleRecipeCriterion(nn.Module):
    """repr_weight * representation loss + kl_weight * KL on logits; the terms stay in `terms`.

    Args:
        teacher_layer: whose feature map is averaged to (B, D_t).
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
        self, student_io_dict: dict[str, Any], teacher_io_dict: dict[str, Any], *_: Any, **__: Any
    ) -> Tensor:
        if MODULE_KEY not in student_io_dict:
            raise UserError("SimpleRecipeCriterion needs the student's SimpleRecipeWrapper")
        if self.teacher_layer not in teacher_io_dict:
            raise UserError(f"the teacher needs `forward_hook: {{output: [{self.teacher_layer}]}}`")
        ours = student_io_dict[MODULE_KEY]
        z_t = pooled(teacher_io_dict[self.teacher_layer]["output"])
        wanted = ours["loss"].projector.out_features
        if z_t.shape[1] != wanted:
            raise UserError(
                f"the teacher's {self.teacher_layer} is {z_t.shape[1]} wide, the projector's "
                f"teacher_dim {wanted}"
            )
        kl = distillation_kl(
            student_io_dict["."]["output"], teacher_io_dict["."]["output"], self.temperature
        )
        self.terms = {"repr": ours["loss"](ours["z_s"], z_t), "kl": kl}
        return self.repr_weight * self.terms["repr"] + self.kl_weight * kl


def pooled(features: Tensor) -> Tensor:
    """(B, D, H, W) averaged to (B, D) in float32 or better; (B, D) as it is."""
    features = features.to(torch.promote_types(torch.float32, features.dtype))
    return features.mean(dim=(2, 3)) if features.ndim == 4 else features


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
        self.classes = self.images.classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images.load(index)
        return (self.transform(image) if self.transform else image), target
