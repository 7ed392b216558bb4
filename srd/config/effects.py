"""A configuration for what is done: settings given by hand that have no effect on it are refused.

A file may hold what several runs share, a teacher's and its student's; flags and keywords may not.
Flags that people leave in a line when they evaluate what they trained with it are told, not refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from srd.config.checks import check
from srd.config.fields import Config, default_name
from srd.config.layers import Layer, flatten
from srd.config.presets import warmup
from srd.config.reading import read_config
from srd.errors import UserError, warn

Doing = Literal["student", "teacher", "evaluation"]

# Fields, or sections of them, that nothing reads. A teacher may be given to a student that learns
# alone, so that one line with another loss each time makes a comparison.
IDLE: dict[Doing, tuple[str, ...]] = {
    "teacher": (
        "model.name", "model.freeze_backbone", "data.unlabelled", "distill.", "teacher.recipe",
        "teacher.image_size", "teacher.mean", "teacher.std", "teacher.bf16", "teacher.evaluate", "cache.",
    ),
    "evaluation": (
        "preset", "compile", "deterministic", "resume", "extend", "slim", "track",
        "model.drop_path", "model.init", "model.freeze_backbone", "augment.", "optim.", "distill.",
        "teacher.recipe", "cache.", "train.",
    ),
}  # fmt: skip
# Fields that an evaluation does not read, or only where it measures the teacher too.
TOLD = ("seed", "output", "name", "data.images_per_class", "data.pixels")
OF_TEACHER = "teacher."
# ... where pictures have no labels
UNLABELLED = (
    "distill.ce_weight", "augment.label_smoothing", "data.images_per_class", "data.label_column",
)  # fmt: skip
READ = ("train.batch_size",)  # of the sections above, by everything
SAYS: dict[Doing, str] = {
    "teacher": "where the teacher is trained",
    "evaluation": "where nothing is trained",
}


def configure(shared: Sequence[Layer], given: Sequence[Layer], doing: Doing) -> Config:
    """The configuration, with a name for its run.

    Args:
        shared: layers from files.
        given: layers that were given by hand and win, each with its source.

    Raises:
        UserError: what cannot be, does not go together, or was given without an effect.
    """
    config = read_config([*shared, *given])
    for source, values in given:
        for key in flatten(values):
            if key not in READ and key.startswith(IDLE.get(doing, ())):
                raise UserError(f"{source}: {key} has no effect {SAYS[doing]}; leave it out")
            if config.data.unlabelled and key in UNLABELLED:
                raise UserError(f"{source}: {key} has no effect without labels; leave it out")
    if doing == "evaluation":
        _tell(config, given)
        return config
    if doing == "teacher" and config.data.unlabelled:
        raise UserError("--train_teacher: a teacher learns from labels; leave data.unlabelled out")
    config = _meant(config, _keys(given), doing)
    config = _warmed_up(config, shared, given)
    _check_idle(config, given)
    check(config)
    return replace(config, name=config.name or default_name(config, doing))


def _check_idle(config: Config, given: Sequence[Layer]) -> None:
    """Raise a UserError for a setting given by hand that another one keeps from having an effect."""
    augment, optim = config.augment, config.optim
    mixes = [augment.mixup > 0, augment.cutmix > 0]
    idle = {
        "augment.color_jitter": (bool(augment.rand_augment), "with augment.rand_augment"),
        "augment.erase_mode": (augment.erase == 0, "without augment.erase"),
        "augment.erase_count": (augment.erase == 0, "without augment.erase"),
        "augment.mix_probability": (not any(mixes), "without augment.mixup or augment.cutmix"),
        "augment.mix_switch": (not all(mixes), "without both augment.mixup and augment.cutmix"),
        "optim.warmup_lr": (optim.warmup_epochs == 0, "without optim.warmup_epochs"),
        "optim.warmup_prefix": (optim.warmup_epochs == 0, "without optim.warmup_epochs"),
        "teacher.recipe": (bool(config.teacher.checkpoint), "beside teacher.checkpoint"),
        "teacher.bf16": (config.amp == "bf16", "with amp bf16"),
    }
    for source, values in given:
        for key, value in flatten(values).items():
            is_idle, where = idle.get(key, (False, ""))
            if is_idle and value:
                raise UserError(f"{source}: {key} has no effect {where}; leave it out")


def _tell(config: Config, given: Sequence[Layer]) -> None:
    """Say which settings given by hand an evaluation does not read."""
    tell_idle(given, TOLD, "in an evaluation")
    if not config.teacher.evaluate:
        tell_idle(given, (OF_TEACHER,), "in an evaluation without teacher.evaluate")


def tell_idle(given: Sequence[Layer], idle: tuple[str, ...], where: str) -> None:
    """Say which settings given by hand have no effect: those that begin with one of `idle`."""
    for source, values in given:
        for key in flatten(values):
            if key.startswith(idle):
                warn(f"{source}: {key} has no effect {where}")


def _keys(layers: Sequence[Layer]) -> set[str]:
    return {key for layer in layers for key in flatten(layer.values)}


def _warmed_up(config: Config, shared: Sequence[Layer], given: Sequence[Layer]) -> Config:
    """`config` with a warm-up that leaves some of a run that was made shorter.

    Where nobody set one, and the paper's 20 epochs would take more than half: its share of them. Where
    a file did, and `--epochs` makes its run shorter than that: as large a share as the file's.
    """
    key, epochs, now = "optim.warmup_epochs", config.train.epochs, config.optim.warmup_epochs
    if key in _keys(given):
        return config
    if key not in _keys(shared):
        now = warmup(epochs) if 2 * now > epochs else now
    elif now >= epochs and "train.epochs" in _keys(given):
        file = read_config(shared).train.epochs
        now = round(now / file * epochs, 2) if now < file else now
    return replace(config, optim=replace(config.optim, warmup_epochs=now))


def _meant(config: Config, by_hand: set[str], doing: Doing) -> Config:
    """`config` with what flags about the teacher mean besides their fields.

    A teacher that is named or given wins over a file's recipe for another one. Where the teacher
    is trained, its weights are those to start from.
    """
    if doing == "student":
        named = {"teacher.name", "teacher.checkpoint"} & by_hand
        if named and "teacher.recipe" not in by_hand:
            config = replace(config, teacher=replace(config.teacher, recipe=None))
    elif doing == "teacher" and "teacher.checkpoint" in by_hand:
        if "model.init" in by_hand:
            raise UserError(
                "--teacher-checkpoint and --init are the same for a teacher: leave one out"
            )
        config = replace(config, model=replace(config.model, init=config.teacher.checkpoint))
    return config
