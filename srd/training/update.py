"""The one function that makes an update: backward, unscale, clip, check that all is finite, step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from srd.device import Readback
from srd.errors import RunFailed


def gradients(
    loss: Tensor,
    backward: Callable[[Tensor], None],
    *,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float | None,
) -> Tensor:
    """Backward, unscale, clip. Returns the gradient norm before clipping, on the device."""
    optimizer.zero_grad(set_to_none=True)
    backward(scaler.scale(loss))
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)


def check_finite(
    terms: Mapping[str, float], where: str, outcome: str = "no update was made"
) -> None:
    """Raise a RunFailed that names the terms which are not finite, and says what came of them."""
    bad = [f"{name} is {value}" for name, value in terms.items() if not math.isfinite(value)]
    if bad:
        raise RunFailed(f"{', '.join(bad)} at {where}; {outcome}")


def update(
    loss: Tensor,
    logged: Mapping[str, Tensor],
    *,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float | None,
    where: str,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> tuple[Readback, Readback]:
    """One update: backward, unscale, clip, check that the losses are finite, step.

    On the CPU, numbers that are not finite stop here, before the weights change. A GPU is not waited
    for: whoever reads what comes back (`check_finite`) must do so before anything made of the weights
    is saved.

    Args:
        loss: of the global batch; the one to differentiate.
        logged: the terms to check and to return, the same on every rank.
        where: epoch and step, for the message.
        backward: from the (scaled) loss to the parameters' gradients.

    Returns:
        The terms, and the gradient norm, on their way to the host.

    Raises:
        RunFailed: on the CPU, a term or the gradient is not finite.
    """
    terms = Readback(logged)
    norm = gradients(loss, backward, optimizer=optimizer, scaler=scaler, clip_norm=clip_norm)
    grad_norm = Readback({"grad_norm": norm})
    if loss.device.type == "cpu":
        check_finite(terms.wait(), where)
        check_finite(grad_norm.wait(), where)
    scaler.step(optimizer)
    scaler.update()
    return terms, grad_norm
