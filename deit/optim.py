"""The optimizer, its schedule, and the one function that makes an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from deit.config import Optim
from deit.task import Task
from srd.device import Readback
from srd.errors import RunFailed


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


def gradients(
    loss: Tensor,
    backward: Callable[[Tensor], None],
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float | None,
) -> Tensor:
    """Backward, unscale, clip. Returns the gradient norm before clipping, on the device."""
    optimizer.zero_grad(set_to_none=True)
    backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    limit = math.inf if clip_norm is None else clip_norm
    return nn.utils.clip_grad_norm_(parameters, limit)


def check_finite(terms: Mapping[str, float], where: str) -> None:
    """Raise a RunFailed that names the terms which are not finite."""
    bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    if bad:
        raise RunFailed(f"{', '.join(bad)} at {where}; no update was made from it")


def update(
    losses: Mapping[str, Tensor],
    logged: Mapping[str, Tensor],
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float | None,
    where: str,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[dict[str, float], Readback]:
    """One update: backward, unscale, clip, check that the losses are finite, step.

    The host waits for the loss values only after the whole backward pass is queued behind them,
    so a GPU does not run dry; a loss that is not finite stops here, before the weights change.

    Args:
        losses: `loss` is the one to differentiate.
        logged: the terms to check and to return, the same on every rank.
        where: epoch and step, for the message.
        backward: from the (scaled) loss to the parameters' gradients.

    Returns:
        The terms as numbers, and the gradient norm on its way to the host.

    Raises:
        RunFailed: a term is not finite, or (on the CPU, where it is known at once) the gradient.
    """
    terms = Readback(logged)
    norm = Readback(
        {"grad_norm": gradients(losses["loss"], backward, parameters, optimizer, scaler, clip_norm)}
    )
    values = terms.wait()
    check_finite(values, where)
    if losses["loss"].device.type == "cpu":
        check_finite(norm.wait(), where)
    scaler.step(optimizer)
    scaler.update()
    return values, norm
