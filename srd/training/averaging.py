"""A moving average of a student's weights: what is measured and handed on in the student's place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

RAW = "raw_model"  # of a checkpoint whose `model` holds the average: the weights that are trained


class Average:
    """The exponential moving average of a network's weights and running statistics, by timm.

        average <- decay * average + (1 - decay) * weights         after every update

    With `warmup` the decay rises: 1 - (updates)^(-2/3), at most `decay`. All processes have the same
    weights, and so the same average. In a checkpoint the average stands where a student's weights
    are looked for, and the weights that are trained under `RAW`.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool) -> None:
        self.model = model
        self.ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)

    def update(self, updates: int) -> None:
        """Take up the weights that update number `updates` (from 1) made; the first ones as they are."""
        self.ema.update(self.model, step=updates)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the averaged weights."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        _copy(self.ema.module.state_dict(), self.model)
        try:
            yield
        finally:
            _copy(own, self.model)

    def saved(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A task's checkpoint with the average in the place of the student's weights."""
        own = self.model.state_dict()
        return {**state, "model": {**state["model"], **self.ema.module.state_dict()}, RAW: own}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up the average in a checkpoint; where it has none, begin with the network as it is."""
        if RAW in state:
            _copy(state["model"], self.ema.module)
        else:
            self.ema.set(self.model)


def trained(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint with the weights that are trained where a task looks for them."""
    return {**state, "model": {**state["model"], **state[RAW]}} if RAW in state else state


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, own in model.state_dict().items():
        own.copy_(values[name])
