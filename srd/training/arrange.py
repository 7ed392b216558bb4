"""How networks are held while they run: memory layout, types, compilation. The same numbers either way,
but for the last bits of what is compiled."""

from __future__ import annotations

import torch

from srd.compiled import compile_network, compiles_teacher
from srd.config.fields import Config
from srd.device import Precision
from srd.models.frozen import round_weights
from srd.models.layout import hold
from srd.models.students import Student
from srd.models.teacher import LoadedTeacher


def arrange_student(student: Student, config: Config, precision: Precision) -> None:
    """Memory layout, and compilation where it is asked for.

    Raises:
        UserError: it is, and there is no compiler.
    """
    device = precision.device
    compiled = bool(config.compile) and compile_network(student, device, asked=True)
    if device.type == "cuda":
        hold(student.model, compiled=compiled)


def arrange_teacher(
    teacher: LoadedTeacher,
    config: Config,
    precision: Precision,
    *,
    batches: int,
) -> None:
    """Memory layout, the type of its weights, and compilation where it is asked for or pays.

    Args:
        batches: that it will see.

    Raises:
        UserError: compilation is asked for, and there is no compiler.
    """
    network, device = teacher.model, precision.device
    mixed = torch.bfloat16 if network.bf16 else precision.mixed
    if mixed is not None:
        round_weights(network.model, mixed)
    compiled = compiles_teacher(
        config.compile, device, deterministic=config.deterministic, batches=batches
    ) and compile_network(network, device, asked=config.compile)
    if device.type == "cuda":
        hold(network.model, compiled=compiled)
