"""Weights to start from: anyone's, with a new head for other classes, and positions resized."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv
from torch import Tensor, nn

from srd.errors import UserError
from srd.files.released import in_ckpts
from srd.files.weights import explain_mismatch, load_weights, with_counters
from srd.models import timm_models
from srd.models.students import find
from srd.models.timm_models import MISFITS

PRETRAINED = "pretrained"
LAYERS = (nn.Linear, nn.Conv2d)  # that a head ends in; with a parametrization they are other types


@dataclass(frozen=True)
class Fit:
    """What was made anew or changed, so that weights fit a network; empty where they fitted."""

    new_head: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"a new head ({', '.join(self.new_head)})"] if self.new_head else []
        parts += [f"{', '.join(self.resized)} resized"] if self.resized else []
        return "; ".join(parts)


def place_of(init: str | None, name: str) -> str | None:
    """Where the weights to start from are: where `init` says, else what a timm tag in `name` means."""
    if init is not None:
        return init
    tagged = "." in name and timm.is_model(name.split(".")[0])
    return PRETRAINED if tagged or name.startswith(timm_models.HUB) else None


def start_from(
    where: str,
    model: nn.Module,
    name: str,
    *,
    num_classes: int,
    image_size: int,
    role: str,
    in_chans: int = 3,
) -> str:
    """Load the weights that a training starts from; what was done, in a line.

    Args:
        where: `pretrained` (the released ones of the paper's students, timm's of others), a timm
            tag of the same model, a file, a run's folder, or `hf-hub:user/repository`.
        model: the network called `name`, for `num_classes` and images of `image_size` pixels.
        role: student or teacher, for the messages.

    Raises:
        UserError: there are none, or they are of another network.
    """
    what = f"the {role} {name}"
    if where == PRETRAINED or _is_tag(where, name, what):
        tag = name if where == PRETRAINED else where
        file = _released(tag, what) if find(tag, role=role) is not None else None
        sizes = {"num_classes": num_classes, "image_size": image_size, "in_chans": in_chans}
        weights = load_weights(file) if file else _published(tag, sizes, role)
        where = str(file) if file else f"the published weights {tag}"
    else:
        weights = load_weights(where)
    fit = load_fitting(model, weights, where, what)
    changes = f", {fit}" if fit.new_head or fit.resized else ""
    return f"{what} starts from {where}{changes}"


def _published(tag: str, sizes: Mapping[str, int], role: str) -> dict[str, Tensor]:
    """timm's weights at this size; without the head that it draws for other classes.

    That would be another one on every process, and at every start.
    """
    model = timm_models.create_classifier(tag, **sizes, pretrained=True, role=role)
    foreign = model.pretrained_cfg["num_classes"] != sizes["num_classes"]
    heads = tuple(f"{name}." for name in head_names(model)) if foreign else ()
    return {name: value for name, value in model.state_dict().items() if not name.startswith(heads)}


def _is_tag(where: str, name: str, what: str) -> bool:
    """Whether `where` is a timm model, and not a file that is called like one."""
    bare = where.split(".")[0]
    if not timm.is_model(bare) or os.path.exists(os.path.expanduser(where)):
        return False
    if bare != name.split(".")[0]:
        raise UserError(f"{what} cannot start from {where}, which is another network")
    return True


def _released(name: str, what: str) -> Path:
    """The paper's weights of one of its students, in `ckpts/`."""
    size = name.removeprefix("srd_deit_")
    file = in_ckpts(f"deit_{size}/ckpt_epoch_299.pth", "ckpt_epoch_299.pth")
    if file is None:
        raise UserError(
            f"no released weights of {what} in ckpts/ (see ckpts/README.md): give --init a file"
        )
    return file


def load_fitting(model: nn.Module, weights: Mapping[str, Tensor], source: Any, what: str) -> Fit:
    """Load weights of the same network, of other classes or another image size too.

    A head for other classes starts at zero, so that no random head disturbs what was learned
    (Kolesnikov et al., Big Transfer, 2020): some of timm's begin with logits of 10. Positions and
    the like are resized by the network's own rule (`checkpoint_filter_fn` beside its class, which is
    timm's convention).

    Args:
        source: where the weights are from, and `what`: the network, for the message.

    Raises:
        UserError: anything else is missing, is left, or has another shape.
    """
    own = model.state_dict()
    fitted = _of_channels(model, _converted(model, weights))
    resized = [
        name
        for name, value in fitted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    heads = tuple(f"{name}." for name in head_names(model))
    of_head = [name for name in own if heads and name.startswith(heads)]
    new_head = any(name not in fitted or fitted[name].shape != own[name].shape for name in of_head)
    if new_head:
        fitted = {name: value for name, value in fitted.items() if not name.startswith(heads)}
        fitted |= {name: own[name] for name in of_head}
    fitted = with_counters(fitted, own)
    explain_mismatch(own, fitted, source, what)
    model.load_state_dict(fitted)
    if new_head:
        _clear_heads(model)
    return Fit(head_names(model) if new_head else (), tuple(resized))


def _clear_heads(model: nn.Module) -> None:
    """Make every head say 0: its last layer, and no norm before it, which could not learn then."""
    for name in head_names(model):
        layers = [m for m in model.get_submodule(name).modules() if type(m) in LAYERS]
        for value in layers[-1].parameters() if layers else ():
            nn.init.zeros_(value)


def _of_channels(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` whose first convolutions, of pictures of 3 channels, are timm's for the model's."""
    first = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    own = model.state_dict()
    for name in (f"{conv}.weight" for conv in ([first] if isinstance(first, str) else first)):
        there, wanted = weights.get(name), own.get(name)
        if there is None or wanted is None or there.ndim != 4 or there.shape[1] != 3:
            continue
        if wanted.shape[1] != 3:
            weights = {**weights, name: adapt_input_conv(wanted.shape[1], there)}
    return weights


def freeze_backbone(model: nn.Module, what: str) -> None:
    """Let only the head learn.

    Raises:
        UserError: nobody knows the head of `what`.
    """
    heads = tuple(f"{name}." for name in head_names(model))
    if not heads:
        raise UserError(f"model.freeze_backbone: {what} has no head by timm's get_classifier")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(heads))


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a network's heads: of what timm's `get_classifier` gives; () without that."""
    if not hasattr(model, "get_classifier"):
        return ()
    given: Any = model.get_classifier()  # type: ignore[operator]
    heads = list(given) if isinstance(given, tuple | list) else [given]
    return tuple(
        name for name, module in model.named_modules() if any(module is head for head in heads)
    )


def _converted(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` by the network's own rule, where their names or shapes are not the network's."""
    own = model.state_dict()
    if all(name in weights and weights[name].shape == value.shape for name, value in own.items()):
        return dict(weights)
    convert = _rule(model)
    if convert is None:
        return dict(weights)
    try:
        return dict(convert(dict(weights), model))
    except MISFITS:  # of weights that are not this network's at all: the names tell it better
        return dict(weights)


def _rule(model: nn.Module) -> Callable[..., Mapping[str, Tensor]] | None:
    modules = (sys.modules.get(cls.__module__) for cls in type(model).__mro__)
    rules = (getattr(module, "checkpoint_filter_fn", None) for module in modules)
    return next((rule for rule in rules if rule is not None), None)
