"""The training loop: from a position in a run to its end, or to a signal."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deit.config import Config
from deit.inputs import Inputs, Mix, measure, to_device
from deit.optim import check_finite, create_optimizer, create_schedule, update
from deit.task import Task
from srd import dist
from srd.checkpoint import save_weights
from srd.config import to_mapping
from srd.device import Precision, Readback
from srd.errors import Stopped
from srd.evaluate import Accuracy, evaluating
from srd.log import RunLog, clock
from srd.run import RunFolder, StopSignals
from srd.teacher import FrozenTeacher
from srd.views import STEP, derive


@dataclass
class Position:
    """Where a run is: the next step to make, and what must survive a stop besides tensors."""

    epoch: int = 0
    step: int = 0  # in the epoch
    updates: int = 0  # in the run
    best_acc1: float = -1.0
    best_epoch: int = -1
    seconds: float = 0.0  # trained, stops not counted
    sums: dict[str, float] = field(default_factory=dict)  # of this epoch's loss terms


@dataclass
class Pending:
    """A step that is made but not told: its gradient norm is still on its way from the device."""

    row: dict[str, Any]
    norm: Readback
    where: str


class Trainer:
    """Trains one task and leaves a run's files.

    Args:
        task: what is trained, on its device.
        forward: the task, or its data-parallel wrapper.
        teacher: None for the baselines without one.
        identity: what a checkpoint must agree on besides the configuration (data size, teacher).
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        forward: nn.Module,
        teacher: FrozenTeacher | None,
        inputs: Inputs,
        folder: RunFolder,
        log: RunLog,
        device: torch.device,
        precision: Precision,
        identity: dict[str, Any],
    ) -> None:
        assert inputs.train is not None and inputs.train_batches is not None
        self.config, self.task, self.forward, self.teacher = config, task, forward, teacher
        self.inputs, self.folder, self.log, self.identity = inputs, folder, log, identity
        self.loader, self.batches = inputs.train, inputs.train_batches
        self.device, self.precision = device, precision
        self.steps = len(self.batches)
        self.mix = Mix(config, inputs.num_classes)
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.optimizer = create_optimizer(task, config.optim, config.train.batch_size, device)
        self.schedule = create_schedule(
            self.optimizer, config.optim, config.train.batch_size, self.steps, config.train.epochs
        )
        self.scaler = precision.scaler()
        self.position = Position()
        self.pending: Pending | None = None
        self.signals = StopSignals()

    def state(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values.

        The generators need no saving: every step derives them from (seed, updates).
        """
        return {
            "model": self.task.weights(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": {"seed": self.config.seed, "updates": self.position.updates},
            "position": asdict(self.position),
            "epoch": self.position.epoch,
            "max_accuracy": self.position.best_acc1,
            "config": {**to_mapping(self.config), "identity": self.identity},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.task.load_weights(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])

    def fit(self) -> Accuracy:
        """Train to the end; returns the accuracy of the last epoch.

        Raises:
            Stopped: a signal came; the run is saved. RunFailed: it cannot go on.
        """
        with self.signals.listening():
            while True:
                self.train_epoch()
                last = self.position.epoch + 1 == self.config.train.epochs
                every = self.config.train.evaluate_every
                accuracy = None
                if last or (every and (self.position.epoch + 1) % every == 0):
                    accuracy = self.evaluate_epoch()
                if last:
                    assert accuracy is not None
                    return accuracy
                self.position.epoch, self.position.step = self.position.epoch + 1, 0
                self.position.sums = {}

    def train_epoch(self) -> None:
        """The steps that are left of this epoch, and a checkpoint."""
        position, self.clock = self.position, time.perf_counter()
        self.forward.train()
        self.batches.start_at(position.epoch, position.step)
        label = f"epoch {position.epoch + 1}/{self.config.train.epochs}"
        self.log.start_bar(label, self.steps, position.step)
        started, first = time.perf_counter(), position.step
        for batch in self.loader if position.step < self.steps else ():
            for name in self.inputs.broken.check(batch):
                self.log.info(f"skipped {name}")
            self.train_step(*to_device(batch, self.device))
            save_every = self.config.train.save_every_steps
            due = save_every and position.updates % save_every == 0 and position.step < self.steps
            if self.signals.received is not None or due:
                self.save()
            if self.signals.received is not None:
                raise Stopped(
                    f"saved {self.folder.last} at {label}, step {position.step}", self.signals.code
                )
        self.log.end_bar()
        self.tell_pending()
        last = position.epoch + 1 == self.config.train.epochs
        if last or (position.epoch + 1) % self.config.train.save_every == 0:
            self.save()
        keep = self.config.train.keep_every
        if dist.is_main() and keep and (position.epoch + 1) % keep == 0:
            self.folder.save(
                self.folder.checkpoints / f"epoch_{position.epoch:04}.pth", self.state()
            )
        self.tell_epoch(position.step - first, time.perf_counter() - started)

    def train_step(self, images: Tensor, targets: Tensor) -> None:
        """One update from one global batch."""
        position = self.position
        torch.manual_seed(int(derive(STEP, self.config.seed, position.updates, dist.rank())[0]))
        self.schedule.step_update(position.updates)
        images, targets = self.mix(images, targets, position.updates)
        where = f"epoch {position.epoch}, step {position.updates}"
        with self.precision.autocast():
            seen = self.teacher(images) if self.teacher is not None else None
            losses = self.forward(images, targets, seen)
        logged = dict(
            zip(losses, dist.reduce_mean(torch.stack([*losses.values()]).detach()), strict=True)
        )
        terms, norm = update(
            losses,
            logged,
            self.parameters,
            self.optimizer,
            self.scaler,
            self.config.optim.clip_norm,
            where,
        )
        self.tell_pending()
        now = time.perf_counter()
        speed = self.config.train.batch_size / (now - self.clock)
        position.seconds, self.clock = position.seconds + now - self.clock, now
        row = {"epoch": position.epoch, "step": position.updates, **terms}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "images_per_second": round(speed, 1)}
        self.pending = Pending(row, norm, where)
        for name, value in terms.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.step, position.updates = position.step + 1, position.updates + 1

    def tell_pending(self) -> None:
        """Log the step before, whose gradient norm has arrived by now.

        In fp16 an infinite norm is the loss scale's business; otherwise it ends the run, before
        anything made from it could be saved.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        norm = pending.norm.wait()
        if not self.scaler.is_enabled():
            check_finite(norm, pending.where)
        norm = {name: value if math.isfinite(value) else None for name, value in norm.items()}  # type: ignore[misc]
        row = {**pending.row, **norm}
        if row["step"] % self.config.train.log_every == 0:
            self.log.row("step", row)
        left = self.config.train.epochs * self.steps - self.position.updates
        remaining = left * self.position.seconds / max(1, self.position.updates)
        shown = {
            name: value for name, value in row.items() if name not in ("epoch", "step", "grad_norm")
        }
        shown["images/s"] = shown.pop("images_per_second")
        self.log.advance(1, {**shown, "left": clock(remaining)})

    def tell_epoch(self, steps: int, seconds: float) -> None:
        """The epoch's mean losses and speed."""
        position = self.position
        row: dict[str, Any] = {"epoch": position.epoch, "step": position.updates}
        row |= {name: value / self.steps for name, value in position.sums.items()}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if steps:
            row["images_per_second"] = round(steps * self.config.train.batch_size / seconds, 1)
        self.log.row("epoch", row)

    def save(self) -> None:
        """Write `last.pth`, once every step in it is known to be sound."""
        self.tell_pending()
        if dist.is_main():
            self.folder.save(self.folder.last, self.state())

    def evaluate_epoch(self) -> Accuracy:
        """Measure the model, log it, and keep it when it is the best so far."""
        position = self.position
        with evaluating(self.task.model):
            accuracy = measure(self.task.model, self.inputs, self.device, self.precision, self.log)
        self.log.row("eval", {"epoch": position.epoch, "step": position.updates, **accuracy.row()})
        mean = position.sums["loss"] / self.steps
        improved = accuracy.acc1 > position.best_acc1
        if improved:
            position.best_acc1, position.best_epoch = accuracy.acc1, position.epoch
        self.log.info(
            f"epoch {position.epoch + 1}/{self.config.train.epochs}  train loss {mean:.4f}  {accuracy}"
            + ("  best" if improved else "")
        )
        if improved and dist.is_main():
            self.folder.save(self.folder.best, self.state())
            save_weights(self.folder.student, self.task.model.state_dict(), self.card(accuracy))
        return accuracy

    def card(self, accuracy: Accuracy) -> dict[str, str]:
        """What `student.safetensors` says of itself."""
        model = self.identity["model"]
        return {"model": model, "epoch": str(self.position.epoch), "acc1": f"{accuracy.acc1:.4f}"}
