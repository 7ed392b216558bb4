"""The optimizer and its schedule, by timm's names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler

from srd.config.fields import Optim
from srd.errors import UserError, nearest
from srd.training.task import DistillationTask


def create_optimizer(
    task: DistillationTask, optim: Optim, *, batch_size: int, device: torch.device
) -> torch.optim.Optimizer:
    """The named optimizer over all that `task` trains, projector included.

    Biases, 1-d parameters and what the model names keep their weights from decaying, unless
    `decay_all`. The learning rate is for the effective batch: lr * batch_size / lr_batch.

    Raises:
        UserError: an unknown name, or a setting that the optimizer does not read.
    """
    settings = check_optimizer(optim)
    if optim.decay_all:
        groups: Any = [{"params": [p for p in task.parameters() if p.requires_grad]}]
    else:
        groups = param_groups_weight_decay(
            task, optim.weight_decay, no_weight_decay_list=task.no_weight_decay()
        )
    kind = get_optimizer_info(optim.name).opt_class
    if device.type == "cuda" and "fused" in inspect.signature(kind).parameters:
        settings["fused"] = True
    return create_optimizer_v2(
        groups,
        optim.name,
        lr=optim.lr * batch_size / optim.lr_batch,
        weight_decay=optim.weight_decay,
        **settings,
    )


def check_optimizer(optim: Optim) -> dict[str, Any]:
    """The settings that are given to the named optimizer; a UserError where it does not read one."""
    # Those that timm knows by a name alone come with other packages.
    known = [n for n in list_optimizers() if not isinstance(get_optimizer_info(n).opt_class, str)]
    if optim.name not in known:
        raise UserError(
            f"unknown optimizer {optim.name!r} (optim.name){nearest(optim.name, known)}: "
            "not one of timm's"
        )
    info = get_optimizer_info(optim.name)
    if info.second_order:
        raise UserError(f"optim.name {optim.name}: optimizers of second order are not supported")
    given: Mapping[str, tuple[Any, bool]] = {
        "betas": (optim.betas, info.has_betas and info.num_betas == 2),
        "eps": (optim.eps, info.has_eps),
        "momentum": (optim.momentum, info.has_momentum),
    }
    for name, (value, read) in given.items():
        if value is not None and not read:
            raise UserError(
                f"optim.{name} has no effect with optim.name={optim.name}: leave it out"
            )
    return {name: value for name, (value, _) in given.items() if value is not None}


def create_schedule(
    optimizer: torch.optim.Optimizer,
    optim: Optim,
    *,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
) -> CosineLRScheduler | MultiStepLRScheduler:
    """Linear warm-up, then a cosine to `min_lr` or steps; set before every update with
    `step_update(number of the update)`.

    As released, the schedule spans the whole run and the warm-up replaces its beginning; with
    `warmup_prefix` it starts when the warm-up ends.
    """
    scale = batch_size / optim.lr_batch
    warmup = int(optim.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    shared: dict[str, Any] = {
        "warmup_t": warmup,
        "warmup_lr_init": optim.warmup_lr * scale,
        "warmup_prefix": optim.warmup_prefix,
        "t_in_epochs": False,
    }
    if optim.schedule == "step":
        assert optim.decay_epochs is not None and optim.decay_rate is not None
        # timm compares with t + 1: one more, and the rate falls after these epochs, as torch's does
        steps = [epoch * steps_per_epoch + 1 for epoch in optim.decay_epochs]
        return MultiStepLRScheduler(optimizer, steps, optim.decay_rate, **shared)
    length = max(1, total - warmup if optim.warmup_prefix else total)
    return CosineLRScheduler(optimizer, t_initial=length, lr_min=optim.min_lr * scale, **shared)
