"""The optimizer and its schedule."""

from __future__ import annotations

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler

from srd.config.fields import Optim
from srd.training.task import Task


def create_optimizer(
    task: Task, config: Optim, batch_size: int, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over all that `task` trains, projector included.

    Biases, 1-d parameters and what the model names keep their weights from decaying. The learning
    rate is for the effective batch: lr * batch_size / lr_batch.
    """
    groups = param_groups_weight_decay(
        task, config.weight_decay, no_weight_decay_list=task.no_weight_decay()
    )
    return torch.optim.AdamW(
        groups,
        lr=config.lr * batch_size / config.lr_batch,
        betas=config.betas,
        eps=config.eps,
        fused=device.type == "cuda",
    )


def create_schedule(
    optimizer: torch.optim.Optimizer,
    config: Optim,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
) -> CosineLRScheduler:
    """Linear warm-up and a cosine to `min_lr`, set before every step with `step_update(step)`.

    As released, the cosine spans the whole run and the warm-up replaces its beginning; with
    `warmup_prefix` it starts when the warm-up ends.
    """
    scale = batch_size / config.lr_batch
    warmup = int(config.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, total - warmup if config.warmup_prefix else total),
        lr_min=config.min_lr * scale,
        warmup_t=warmup,
        warmup_lr_init=config.warmup_lr * scale,
        warmup_prefix=config.warmup_prefix,
        t_in_epochs=False,
    )
