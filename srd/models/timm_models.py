"""Any timm classifier, as student and as teacher: its name, its building, its reading."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm
import torch
from torch import Tensor, nn

from srd.errors import UserError, nearest
from srd.models.outputs import Output, of_black_image

HUB = "hf-hub:"
# What timm's models raise for images that they cannot read, when they are built or called.
MISFITS = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)
COMMON_SIZES = range(32, 385, 32)  # pixels, among which the nearest that fits is looked for


class HubError(UserError):
    """The Hub did not give what was asked for."""


class CannotRead(UserError):
    """A model cannot read images of a size; `size` is the nearest that it can read, if any."""

    def __init__(self, message: str, size: int | None) -> None:
        super().__init__(message)
        self.size = size


def check_name(name: str, *, role: str = "model", others: Iterable[str] = ()) -> None:
    """Raise a UserError that names the nearest unless timm has the model, and the tag if one is given.

    Args:
        role: student, teacher or model, for the message.
        others: names that are known besides timm's, for the message.
    """
    if name.startswith(HUB):
        return
    bare = name.split(".")[0]
    if not timm.is_model(bare):
        hint = nearest(bare, [*others, *timm.list_models()])
        raise UserError(f"unknown {role} {name!r}{hint}: not a timm model")
    tagged = timm.list_pretrained(f"{bare}.*")
    if "." in name and name not in tagged:
        raise UserError(f"timm has no weights {name!r}{nearest(name, tagged)}")


def create_classifier(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    drop_path: float = 0.0,
    pretrained: bool = False,
    role: str = "model",
    in_chans: int = 3,
) -> Any:
    """A timm classifier by name.

    Args:
        num_classes: C; with `pretrained`, other classes than the weights' get a new head. 0: none.
        image_size: pixels; for models that are built for one size.
        drop_path: stochastic depth of the last block, 0 also where timm's own default is more.
        pretrained: with timm's weights.
        role: student, teacher or model, for the messages.
        in_chans: channels of the images; weights for other ones are changed as timm does it.

    Raises:
        UserError: an unknown name, no classes, an image size for which it cannot be built, a drop
            path that it does not have, or no weights. HubError: the Hub did not answer.
    """
    check_name(name, role=role)
    if num_classes < 0:
        raise UserError(f"a {role} has classes, or 0 for no head, not {num_classes}")
    arguments: dict[str, Any] = {"num_classes": num_classes} | _size(name, image_size)
    if in_chans != 3:
        arguments["in_chans"] = in_chans
    try:
        return _build(name, drop_path, {**arguments, "pretrained": pretrained})
    except UserError:
        raise
    except Exception as error:  # the Hub client's and its HTTP library's have no common class
        if pretrained and isinstance(error, RuntimeError) and "retrained" in str(error):
            raise UserError(f"timm has no weights {name!r}: {_reason(error)}") from error
        if name.startswith(HUB) or (pretrained and _can_be_built(name, drop_path, arguments)):
            raise HubError(f"no {name} from the Hub ({_reason(error)})") from error
        raise _cannot_read(name, image_size, role, error) from error


def _can_be_built(name: str, drop_path: float, arguments: dict[str, Any]) -> bool:
    try:
        _build(name, drop_path, arguments)
    except MISFITS:
        return False
    return True


def _build(name: str, drop_path: float, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, drop_path_rate=drop_path, **arguments)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
    if drop_path > 0:
        raise UserError(f"{name} has no drop path: set model.drop_path to 0")
    return timm.create_model(name, **arguments)


def _size(name: str, image_size: int) -> dict[str, int]:
    """What a model that is built for one size must be told."""
    usual = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": image_size} if usual is not None and usual.fixed_input_size else {}


def read(model: Any, images: Tensor, *, features: bool = True) -> Output:
    """What any timm classifier says of images (B, 3, H, W).

    Feature maps, (B, D, H, W) or (B, H, W, D), are averaged over their positions, before any
    dropout; everything else is pooled by the model's own head, whose dropout (timm's default is
    none) is drawn once for the features and once for the logits. A model with a second, distilled,
    head gives both logits where it is trained with `set_distilled_training`, else their mean.

    Raises:
        UserError: several outputs that are not the logits of two heads.
    """
    if not features:
        return Output(None, *_by_head(model(images)))
    last = model.forward_features(images)
    logits, distilled_logits = _by_head(model.forward_head(last))
    tokens, maps = _patch_tokens(model, last), _map(model, last)
    return Output(_pooled(model, last), logits, distilled_logits, tokens, maps)


def _by_head(logits: Any) -> tuple[Tensor, Tensor | None]:
    if isinstance(logits, Tensor):
        return logits, None
    if isinstance(logits, tuple | list) and len(logits) == 2:
        return logits[0], logits[1]
    raise UserError(
        f"a model that returns a {type(logits).__name__} instead of logits, or of the logits of two "
        "heads, is no classifier: take another"
    )


def _pooled(model: Any, last: Any) -> Tensor:
    if isinstance(last, Tensor) and last.ndim == 4:
        return last.mean(dim=(2, 3) if last.shape[1] == model.num_features else (1, 2))
    pooled = model.forward_head(last, pre_logits=True)
    if isinstance(pooled, tuple):  # of the class and the distillation token
        return (pooled[0] + pooled[1]) / 2
    return pooled


def _map(model: Any, last: Any) -> Tensor | None:
    if not isinstance(last, Tensor) or last.ndim != 4:
        return None
    return last if last.shape[1] == model.num_features else last.permute(0, 3, 1, 2)


def _patch_tokens(model: Any, last: Any) -> Tensor | None:
    if not isinstance(last, Tensor) or last.ndim != 3:
        return None
    prefix: int | None = getattr(model, "num_prefix_tokens", None)
    if prefix is None and getattr(model, "cls_token", None) is not None:
        return None  # PiT: only its class tokens are left
    return last[:, prefix or 0 :]


def check_reading(
    network: nn.Module, name: str, *, num_classes: int, image_size: int, role: str
) -> None:
    """Look at one black image before training does at many.

    Args:
        network: images to `Output`.
        name: of the model in it.
        role: student or teacher, for the messages.

    Raises:
        UserError: the model cannot read this size (and one that it can read), is no classifier, or
            has features that are not one vector an image.
    """
    try:
        output = of_black_image(network, image_size)
    except (UserError, torch.OutOfMemoryError):
        raise
    except NotImplementedError as error:
        raise UserError(f"the {role} {name} is no classifier ({_reason(error)})") from error
    except MISFITS as error:
        raise _cannot_read(name, image_size, role, error) from error
    if num_classes and output.logits.shape != (1, num_classes):
        shape = tuple(output.logits.shape[1:])
        raise UserError(
            f"the {role} {name} is no classifier: for each image it gives {shape} instead of "
            f"{num_classes} logits"
        )
    if output.features is not None and output.features.ndim != 2:
        shape = tuple(output.features.shape[1:])
        raise UserError(
            f"the features of the {role} {name} are not one vector an image but {shape}: take a "
            "model that pools them, or --distillation kd, which reads logits only"
        )


def _cannot_read(name: str, image_size: int, role: str, error: Exception) -> CannotRead:
    fitting = _readable_size(name, image_size)
    mend = f"set --image-size {fitting}, or take another {role}" if fitting else "take another"
    return CannotRead(
        f"the {role} {name} cannot read images of {image_size}x{image_size} pixels "
        f"({_reason(error)}): {mend}",
        fitting,
    )


def _readable_size(name: str, image_size: int) -> int | None:
    """The size nearest to `image_size` that a timm model can read, tried without memory."""
    usual = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if usual is None:
        return None
    own = usual.input_size[-1]
    sizes = sorted({*COMMON_SIZES, own} - {image_size}, key=lambda size: abs(size - image_size))
    for size in sizes:
        try:
            with torch.device("meta"), torch.no_grad():
                model = timm.create_model(name, **_size(name, size)).eval()
                model(torch.zeros(1, 3, size, size))
        except Exception:  # whatever a model meets: this size is none
            continue
        return size
    return own if own != image_size else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
