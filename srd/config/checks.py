"""Settings that must go together: what no field alone can say."""

from __future__ import annotations

from srd.config.fields import Augment, Cache, Config, Distill, Optim
from srd.config.presets import warmup
from srd.errors import UserError
from srd.method.losses import LOSSES


def check(config: Config) -> None:
    """Raise a UserError for values that do not go together, or have no effect."""
    mixing = config.augment.mixup > 0 or config.augment.cutmix > 0
    if mixing and config.train.batch_size % 2:
        raise UserError(
            f"train.batch_size {config.train.batch_size} is odd: mixup and cutmix pair the images "
            f"of a batch; use {config.train.batch_size + 1}, or set augment.mixup and augment.cutmix to 0"
        )
    check_batch_size("train.batch_size", config.train.batch_size)
    if config.augment.crop_padding is not None:
        for key in ("crop_scale", "crop_ratio", "interpolation"):
            if getattr(config.augment, key) != getattr(Augment, key):
                raise UserError(
                    f"augment.{key} has no effect with augment.crop_padding: leave it out"
                )
    for key in ("crop_scale", "crop_ratio"):
        low, high = getattr(config.augment, key)
        if low > high:
            raise UserError(f"augment.{key} ({low}, {high}): the first must not exceed the second")
    if config.data.pixels != "released" and config.model.in_chans != 3:
        raise UserError(
            f"data.pixels: {config.data.pixels} reads three channels, and model.in_chans is "
            f"{config.model.in_chans}: take data.pixels=released"
        )
    if config.teacher.bf16 and config.amp == "fp64":
        raise UserError(
            "teacher.bf16: amp fp64 computes everything in double precision: leave one out"
        )
    check_schedule(config.optim)
    check_warmup(config.optim, config.train.epochs)
    check_unlabelled(config)
    check_frozen(config)
    check_average("train", config.train.ema_decay, config.train.ema_warmup)
    check_cache(config.cache, config.train.epochs)
    check_weights(config.distill)


def check_batch_size(name: str, size: int) -> None:
    """Raise a UserError for a batch too small for statistics of it; `name` is the setting's."""
    if size < 2:
        raise UserError(f"{name} {size} has no batch statistics: use at least 2")


def check_unlabelled(config: Config) -> None:
    """Raise a UserError where pictures have no labels, and nothing else teaches."""
    loss = LOSSES[config.distill.loss.name]
    if config.data.unlabelled and loss.needs:
        needs = " and ".join(sorted(loss.needs))
        raise UserError(
            f"--unlabelled: the loss {config.distill.loss.name!r} needs {needs} besides what student and "
            "teacher say; take one that compares these alone, such as srd"
        )
    if config.data.unlabelled and not (loss.logits or loss.reads):
        raise UserError(
            f"--unlabelled: the loss {config.distill.loss.name!r} learns from labels alone; take one that "
            "has a teacher, such as srd"
        )


def check_frozen(config: Config) -> None:
    """Raise a UserError where only a head may learn, and something else would have to."""
    if not config.model.freeze_backbone:
        return
    if config.data.unlabelled or LOSSES[config.distill.loss.name].reads is not None:
        raise UserError(
            "model.freeze_backbone: only the head learns, from labels or logits: set --distillation "
            "none, or kd"
        )
    if config.model.init is None and "." not in config.model.name:
        raise UserError(
            "model.freeze_backbone: the backbone stays as it is; give its weights, --init"
        )


def check_average(section: str, decay: float | None, warmup: bool) -> None:
    """Raise a UserError for a warm-up of a moving average that is off."""
    if warmup and decay is None:
        raise UserError(
            f"{section}.ema_warmup has no effect without {section}.ema_decay, such as 0.9998"
        )


def check_cache(cache: Cache, epochs: int) -> None:
    """Raise a UserError for settings of the teacher cache that have no effect."""
    if cache.epochs is not None and cache.epochs > epochs:
        raise UserError(
            f"cache.epochs {cache.epochs} is more than the {epochs} epochs of the run: leave it out, "
            "and every epoch has views of its own"
        )
    for name in ("dtype", "top_logits"):
        if cache.path is None and getattr(cache, name) != getattr(Cache, name):
            raise UserError(f"cache.{name} has no effect without --teacher-cache: leave it out")


def check_schedule(optim: Optim) -> None:
    """Raise a UserError for settings that the schedule does not read, or lacks."""
    steps = (optim.decay_epochs, optim.decay_rate)
    if optim.schedule == "step" and None in steps:
        raise UserError(
            "optim.schedule step needs optim.decay_epochs and optim.decay_rate, such as "
            "[30, 60, 90] and 0.1"
        )
    if optim.decay_epochs is not None and list(optim.decay_epochs) != sorted(optim.decay_epochs):
        raise UserError(f"optim.decay_epochs {list(optim.decay_epochs)} must ascend")
    if optim.schedule == "cosine" and steps != (None, None):
        raise UserError(
            "optim.decay_epochs and optim.decay_rate have no effect on a cosine: set "
            "optim.schedule=step, or leave them out"
        )
    if optim.schedule == "step" and optim.min_lr != Optim.min_lr:
        raise UserError("optim.min_lr has no effect with optim.schedule=step: leave it out")


def check_warmup(optim: Optim, epochs: int) -> None:
    """Raise a UserError for a warm-up after which nothing is left of the run."""
    if optim.warmup_epochs >= epochs:
        raise UserError(
            f"optim.warmup_epochs {optim.warmup_epochs:g} is as long as the run of {epochs} epochs, so "
            f"the learning rate never arrives: --warmup-epochs {warmup(epochs):g} is usual"
        )


def check_weights(distill: Distill) -> None:
    """Raise a UserError for weights of terms that the chosen loss does not have."""
    for name in idle_weights(distill.loss.name):
        if getattr(distill, name) != getattr(Distill, name):
            raise UserError(
                f"distill.{name} has no effect with the loss {distill.loss.name!r}: leave it out"
            )


def idle_weights(name: str) -> list[str]:
    """Fields of `distill` that a loss does not read."""
    loss = LOSSES[name]
    idle = [] if loss.logits else ["kl_weight", "temperature"]
    return idle if loss.reads else [*idle, "repr_weight"]
