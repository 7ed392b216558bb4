"""The teacher of the DeiT half: RegNetY-160, or any timm model with any weights."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor

from srd.errors import UserError, nearest
from srd.models.outputs import TeacherOutput


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
