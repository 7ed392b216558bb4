"""A torchdistill box as a task of the shared loop: its losses, and what is saved of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from resnet import box as boxes
from resnet.models import Models
from resnet.recipe import Run
from srd.compiled import compile_network, compiles_teacher, forget_compiled
from srd.device import Precision, on_device
from srd.distributed import gradients
from srd.errors import UserError
from srd.files.weights import load_plain
from srd.training.parts import Losses

Items = tuple[Tensor, Tensor, Any]  # images, targets, and what else a data set gives


class BoxTask:
    """A box's student, its losses by name, and the tensors that a step changes."""

    def __init__(self, box: Any, models: Models, precision: Precision) -> None:
        self.box, self.models, self.precision = box, models, precision
        self.parameters = [p for group in box.optimizer.param_groups for p in group["params"]]

    @property
    def model(self) -> nn.Module:
        """The plain student."""
        return self.models.student

    def losses(self, batch: Items, seed: int) -> Losses:
        """`loss`, and every term that the recipe names, as scalars."""
        torch.manual_seed(seed)
        with self.precision.autocast():
            total = self.box.forward_process(*batch)
        return boxes.named_losses(self.box, total)

    def backward(self, loss: Tensor) -> None:
        """Gradients, averaged over processes."""
        with gradients.averaged(self.parameters):
            loss.backward()

    def checkpoint(self) -> dict[str, Any]:
        """The plain student, and what wrappers and criteria hold beside it."""
        extras = boxes.extras(self.box, self.models)
        return {"model": self.models.student.state_dict(), "extras": extras}

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Take up what `checkpoint` returned."""
        load_plain(self.models.student, state["model"])
        boxes.load_extras(self.box, state["extras"])


def compile_networks(box: Any, run: Run, device: torch.device, batches: int) -> None:
    """Compile the teacher where it is asked for or pays, and the student where it is asked for.

    Args:
        batches: of the stage that the box is at.

    Raises:
        UserError: it is asked for, and there is no compiler.
    """
    forget_compiled()
    pays = compiles_teacher(run.compile, device, deterministic=run.deterministic, batches=batches)
    if pays and getattr(box, "teacher_model", None) is not None and not box.teacher_updatable:
        compile_network(box.teacher_model, device, asked=run.compile)
    if run.compile:
        compile_network(boxes.trained_network(box), device, asked=True)


class BoxSchedule:
    """torchdistill's schedule where it moves every n updates; where it moves every epoch, the box
    does it itself."""

    def __init__(self, box: Any) -> None:
        self.schedule, self.every = box.lr_scheduler, box.scheduling_step or 0

    def step_update(self, num_updates: int) -> None:
        """Move after every n-th update."""
        if self.every > 0 and num_updates and num_updates % self.every == 0:
            self.schedule.step()

    def move(self, epochs: int, steps: int) -> None:
        """From the start to where it is after so many epochs and steps.

        Raises:
            UserError: it moves by the accuracy of every epoch, which is not known any more.
        """
        if isinstance(self.schedule, ReduceLROnPlateau):
            raise UserError(
                "--extend: ReduceLROnPlateau moves by the accuracies of the epochs before, and cannot "
                "be moved under other settings"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no optimizer has moved yet
            for _ in range(max(0, steps - 1) // self.every if self.every > 0 else epochs):
                self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.schedule.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state_dict)


def to_device(batch: Items, precision: Precision, *, channels_last: bool) -> Items:
    """A training batch on the device."""
    images, targets, more = batch
    images = on_device(images, precision.device).to(precision.dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, targets.to(precision.device, non_blocking=True), more
