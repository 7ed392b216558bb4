"""A configuration from layers of settings: those of earlier versions, of the loss, of the channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from srd.config.fields import IMAGENET_MEAN, IMAGENET_STD, Config, Data
from srd.config.layers import Layer, build, moved
from srd.errors import UserError

# Of pictures of other channels, where nobody says: greys, and the opacity from -1 to 1.
USUAL_MEAN: dict[int, tuple[float, ...]] = {
    1: (0.449,),
    3: IMAGENET_MEAN,
    4: (*IMAGENET_MEAN, 0.5),
}
USUAL_STD: dict[int, tuple[float, ...]] = {1: (0.226,), 3: IMAGENET_STD, 4: (*IMAGENET_STD, 0.5)}

# Where fields of earlier versions have gone.
MOVED = {
    "distill.method": "distill.loss.name",
    "distill.match": "distill.loss.match",
    "distill.alpha": "distill.loss.alpha",
    "distill.bn_eps": "distill.loss.bn_eps",
    "distill.log_eps": "distill.loss.log_eps",
}


def read_config(layers: Iterable[Layer]) -> Config:
    """The configuration that `layers` make, those of earlier versions included.

    Raises:
        UserError: as `srd.config.layers.build`.
    """
    layers = [Layer(source, _moved(values)) for source, values in layers]
    config = build(Config, _of_last_loss(layers))
    optim = config.optim
    if optim.name == "adamw":
        # torch's numbers, and the paper's: written down, whoever changes them
        optim = replace(optim, betas=optim.betas or (0.9, 0.999), eps=optim.eps or 1e-8)
    return replace(config, optim=optim, data=_of_channels(config))


def _of_channels(config: Config) -> Data:
    """The data's settings with as many means and deviations as its pictures have channels."""
    channels, usual = config.model.in_chans, {"mean": USUAL_MEAN, "std": USUAL_STD}
    given = {name: tuple(getattr(config.data, name)) for name in usual}
    mean, std = (
        usual[name][channels] if given[name] == usual[name][3] else given[name] for name in usual
    )
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"data.{name} has {len(values)} numbers, and model.in_chans is {channels}: give one "
                "for each channel"
            )
    return replace(config.data, mean=mean, std=std)


def _moved(values: Mapping[str, Any]) -> dict[str, Any]:
    """An earlier version's settings at their places of today.

    There, all settings of `srd` stood beside every method; with another, they had no effect.
    """
    distill = values.get("distill")
    if isinstance(distill, Mapping) and distill.get("method", "srd") != "srd":
        idle = [key.split(".")[1] for key in MOVED if key != "distill.method"]
        values = {**values, "distill": {k: v for k, v in distill.items() if k not in idle}}
    return moved(values, MOVED)


def _of_last_loss(layers: list[Layer]) -> list[Layer]:
    """`layers` with the settings of the loss that is named last: another one's are left out."""
    name: Any = "srd"
    kept: list[Layer] = []
    for source, values in layers:
        distill = values.get("distill")
        loss = distill.get("loss") if isinstance(distill, Mapping) else None
        if isinstance(loss, str):
            loss = {"name": loss}
        if isinstance(loss, Mapping) and loss.get("name", name) != name:
            name, kept = loss["name"], [_without_loss(layer) for layer in kept]
        if isinstance(distill, Mapping) and isinstance(loss, Mapping):
            values = {**values, "distill": {**distill, "loss": loss}}
        kept.append(Layer(source, values))
    return [Layer("", {"distill": {"loss": {"name": name}}}), *kept]


def _without_loss(layer: Layer) -> Layer:
    distill = layer.values.get("distill")
    if not isinstance(distill, Mapping):
        return layer
    rest = {key: value for key, value in distill.items() if key != "loss"}
    return Layer(layer.source, {**layer.values, "distill": rest})
