"""Whether a loop can go on from a checkpoint: tried before any of it is taken up."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from srd.run.extension import check_extended, expected_updates
from srd.run.state import Misfit, check_like
from srd.training.averaging import RAW

if TYPE_CHECKING:
    from srd.training.loop import Loop


def check_fits(loop: Loop, state: Mapping[str, Any], *, changed: bool = False) -> None:
    """Raise a Misfit, which names the field, unless `loop` can take up `state`; nothing changes.

    Args:
        state: a checkpoint that `srd.run.state.check_outline` has passed.
        changed: the run goes on under other settings: its schedule is a new one.
    """
    check_extended(extended := state.get("extended", []))
    _check_place(loop, state["position"], extended)
    for name, own in loop.task.checkpoint().items():
        if name not in state:
            raise Misfit(f"{name} is missing")
        check_like(state[name], own, name)
    if RAW in state or (loop.average and not changed):
        check_like(state.get(RAW), loop.task.model.state_dict(), RAW)
    scaler = loop.scaler.state_dict()
    schedule = loop.schedule.state_dict() if loop.schedule is not None else None
    for name, own in (("lr_scheduler", schedule), ("scaler", scaler), ("optimizer", {})):
        if name not in state:
            raise Misfit(f"{name} is missing")
        afresh = name == "lr_scheduler" and changed
        if not afresh and (name != "scaler" or state[name] != {}):  # where there was none, likewise
            check_like(state[name], own, name, complete=False)
    _check_optimizer(loop.optimizer, state["optimizer"], state["position"]["updates"])


def _check_place(loop: Loop, position: Mapping[str, Any], extended: list[dict[str, Any]]) -> None:
    """The place is one of this run's."""
    span, steps = loop.span, loop.steps
    epoch, step, updates = (position[name] for name in ("epoch", "step", "updates"))
    if epoch >= span.end:
        raise Misfit(f"position.epoch is {epoch}, the run has {span.end}")
    if epoch < span.first:
        raise Misfit(f"position.epoch is {epoch}, of a stage before this one")
    if step > steps:
        raise Misfit(f"position.step is {step}, an epoch has {steps}")
    within = expected_updates(extended, epoch=epoch - span.first, step=step, steps=steps)
    if updates != span.updates + within:
        raise Misfit(f"position.updates is {updates}, not {span.updates + within}")
    if step and "loss" not in position.get("sums", {}):
        raise Misfit("position.sums.loss is missing")
    if position.get("best_epoch", -1) > epoch:
        raise Misfit(f"position.best_epoch is {position['best_epoch']}, the run was in {epoch}")


def _check_optimizer(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any], updates: int
) -> None:
    """A copy of the optimizer takes the state up, and makes an update of zeros with it.

    Every optimizer has its own tensors, so that no table could say what they must be.
    """
    own = optimizer.state_dict()
    check_like(
        saved.get("param_groups"), own["param_groups"], "optimizer.param_groups", complete=False
    )
    state = saved.get("state")
    if not isinstance(state, Mapping):
        raise Misfit("optimizer.state is missing, or no mapping")
    for number, group in enumerate(saved["param_groups"]):
        if group["lr"] < 0:
            raise Misfit(f"optimizer.param_groups.{number}.lr is {group['lr']}")
    probe = copy.deepcopy(optimizer)
    parameters = [p for group in probe.param_groups for p in group["params"]]
    if strange := [key for key in state if key not in range(len(parameters))]:
        raise Misfit(f"optimizer.state.{str(strange[0])[:40]} is no parameter's")
    try:
        probe.load_state_dict(copy.deepcopy(dict(saved)))  # it takes the tensors themselves
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        probe.step()
        new = probe.state_dict()["state"]
    except Exception as error:  # whatever an optimizer meets in tensors that are not its own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise Misfit(f"optimizer.state does not fit ({reason})") from None
    if updates and new and not state:
        raise Misfit("optimizer.state is empty")
    for number, parameter in enumerate(parameters):
        if not torch.isfinite(parameter).all():
            raise Misfit(f"optimizer.state.{number} makes its parameter infinite")
