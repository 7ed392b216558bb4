"""Which preset a training takes, and what it makes of the pictures that are there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from srd.config.effects import configure
from srd.config.fields import Config
from srd.config.layers import Layer, flatten, merge, nested
from srd.config.presets import FEW, small
from srd.config.reading import read_config
from srd.data.sources import open_splits
from srd.device import choose_device
from srd.models.initial import place_of
from srd.models.students import is_batch_normed
from srd.run.folder import RunFolder
from srd.run.settings import own_settings


class Chosen(NamedTuple):
    """The configuration of a training, and what to tell of how it came about."""

    config: Config
    notes: list[str]


def configure_training(
    shared: Sequence[Layer], given: Sequence[Layer], trained: Literal["student", "teacher"]
) -> Chosen:
    """The configuration of a training, its preset filled in below everything that is set.

    Without a preset and without a file of settings, few pictures of one's own get `small`. A run
    that goes on keeps what was chosen at its start, whatever the machine has now.

    Raises:
        UserError: as `srd.config.effects.configure`, or there are no pictures.
    """
    config = configure(shared, given, trained)
    before = _recorded(config)
    settled = {key for layer in (*shared, *given) for key in flatten(layer.values)}
    if config.preset is None and not shared:
        choice = before.get("preset") if before is not None else _few(config)
        config = replace(config, preset=choice or None)
    notes, layers = [], [*shared]
    if config.preset == "small":
        images = _count(config)
        values = _for_data(config, trained, images, settled)
        if before is not None and before.get("preset") == "small":
            values = _as_before(values, flatten(before))
        layers = [Layer("--preset small", {"preset": "small", **values}), *shared]
        config = configure(layers, given, trained)
        notes.append(
            f"preset small: batch, epochs, learning rate and augmentation are made for {images} "
            "pictures; --preset imagenet is the paper's recipe"
        )
    meant, now = read_config([*layers, *given]).optim.warmup_epochs, config.optim.warmup_epochs
    if now != meant:
        notes.append(
            f"a warm-up of {meant:g} epochs is too long for {config.train.epochs}: its share of "
            f"the planned ones, {now:g}, is taken (--warmup-epochs)"
        )
    return Chosen(_micro_batch_as_before(config, before, settled), notes)


def _micro_batch_as_before(
    config: Config, before: Mapping[str, Any] | None, settled: set[str]
) -> Config:
    """`config` with the micro-batch that was chosen when the run began."""
    chosen = flatten(before or {}).get("train.micro_batch")
    if not isinstance(chosen, int) or "train.micro_batch" in settled:
        return config
    return replace(config, train=replace(config.train, micro_batch=chosen))


def _recorded(config: Config) -> Mapping[str, Any] | None:
    """The settings of the run that goes on; None where one starts."""
    if config.resume == "none":
        return None
    if config.resume == "auto":
        folder = RunFolder(config.output, str(config.name))
        if not folder.has_checkpoints():
            return None
    else:
        folder = RunFolder(Path(config.resume).expanduser().absolute().parent.parent)
    values: Mapping[str, Any] = {}
    for layer in own_settings(folder.path):
        values = merge(values, layer.values)
    return values or None


def _as_before(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as the run has them that goes on."""
    result: dict[str, Any] = {}
    for key, value in flatten(values).items():
        result = merge(result, nested(key, before.get(key, value)))
    return result


def _few(config: Config) -> Literal["small"] | None:
    """`small` where somebody's own pictures are few; the digits have recipes of their own."""
    data = config.data
    if data.dataset == "digits":
        return None
    if data.dataset == "imagefolder" and data.path and _many_files(Path(data.path).expanduser()):
        return None
    return "small" if _count(config) < FEW else None


def _many_files(root: Path) -> bool:
    """Whether FEW files lie in a folder's training half: no need to list millions twice."""
    if not root.is_dir():
        return False
    files = 0
    for _, _, names in os.walk(root / "train" if (root / "train").is_dir() else root):
        files += len(names)
        if files >= 2 * FEW:
            return True
    return False


def _count(config: Config) -> int:
    """Training images."""
    train = open_splits(config.data, training=True).train
    assert train is not None
    return len(train)


def _for_data(config: Config, trained: str, images: int, settled: set[str]) -> dict[str, Any]:
    """What `small` says of so many pictures and of the machine of `config`."""
    name = config.teacher.name if trained == "teacher" else config.model.name
    model, train = config.model, config.train
    return small(
        images,
        choose_device(config.device).type,
        batch_size=train.batch_size if "train.batch_size" in settled else None,
        epochs=train.epochs if "train.epochs" in settled else None,
        from_weights=place_of(model.init, name) is not None,
        batch_norms=is_batch_normed(
            name, image_size=model.image_size, role=trained, in_chans=model.in_chans
        ),
    )
