"""A configuration for what is done: settings given by hand that have no effect on it are refused.

A file may hold what several runs share, a teacher's and its student's; flags and keywords may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from srd.config.fields import Config, check, default_name, read_config
from srd.config.layers import Layer, flatten
from srd.errors import UserError
from srd.method.losses import LOSSES

Doing = Literal["student", "teacher", "evaluation"]

# Fields, or sections of them, that nothing reads.
IDLE: dict[Doing, tuple[str, ...]] = {
    "student": (),
    "teacher": (
        "model.name", "distill.", "teacher.checkpoint", "teacher.recipe", "teacher.mean",
        "teacher.std", "teacher.evaluate",
    ),
    "evaluation": (
        "seed", "output", "name", "compile", "deterministic", "resume", "model.drop_path",
        "augment.", "optim.", "distill.", "teacher.recipe", "train.",
    ),
}  # fmt: skip
READ = ("train.batch_size",)  # of the sections above, by everything
SAYS: dict[Doing, str] = {
    "student": "",
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
    idle, why = IDLE[doing], SAYS[doing]
    loss = LOSSES[config.distill.loss.name]
    if doing == "student" and not (loss.logits or loss.reads):
        idle, why = ("teacher.",), f"with the loss {config.distill.loss.name!r}"
    for source, values in given:
        for key in flatten(values):
            if key not in READ and key.startswith(idle):
                raise UserError(f"{source}: {key} has no effect {why}; leave it out")
    if doing == "evaluation":
        return config
    check(config)
    return replace(config, name=config.name or default_name(config, doing))
