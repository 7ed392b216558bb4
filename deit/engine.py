"""The training loop: from a position in a run to its end, or to a signal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deit.accumulate import MicroBatches
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
        self.micro: MicroBatches | None = None
        if (size := config.train.micro_batch) is not None:
            self.micro = MicroBatches(task, teacher, size, precision)
        self.position = Position()
        self.pending: Pending | None = None
        self.signals, self.stopping = StopSignals(), False

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
        epochs, position = self.config.train.epochs, self.position
        every = self.config.train.evaluate_every
        total = epochs * self.steps
        with (
            self.signals.listening(),
            self.log.bar(self.label, total, position.updates) as self.bar,
        ):
            while True:
                self.train_epoch()
                last = position.epoch + 1 == epochs
                if last or (every and (position.epoch + 1) % every == 0):
                    accuracy = self.evaluate_epoch()
                if last:
                    return accuracy
                position.epoch, position.step, position.sums = position.epoch + 1, 0, {}

    @property
    def label(self) -> str:
        """Where the run is, for people."""
        return f"epoch {self.position.epoch + 1}/{self.config.train.epochs}"

    def train_epoch(self) -> None:
        """The steps that are left of this epoch, and a checkpoint where one is due."""
        position, train = self.position, self.config.train
        self.forward.train()
        self.batches.start_at(position.epoch, position.step)
        started = self.clock = time.perf_counter()
        first = position.step
        for batch in self.loader if position.step < self.steps else ():
            for name in self.inputs.broken.check(batch):
                self.log.info(f"skipped {name}")
            self.train_step(*to_device(batch, self.device, self.precision.dtype))
            self.stop_if_asked()
            if train.save_every_steps and position.updates % train.save_every_steps == 0:
                self.save(self.folder.last)
        self.tell_pending()
        self.tell_epoch(position.step - first, time.perf_counter() - started)
        done = position.epoch + 1
        if done == train.epochs or done % train.save_every == 0:
            self.save(self.folder.last)
        if train.keep_every and done % train.keep_every == 0:
            self.save(self.folder.checkpoints / f"epoch_{position.epoch:04}.pth")

    def stop_if_asked(self) -> None:
        """Save and stop when a signal has come, to this process or to another."""
        if self.stopping:
            self.save(self.folder.last)
            dist.barrier()  # torchrun ends the others when one leaves: wait until it is saved
            place = f"{self.label}, step {self.position.step} of {self.steps}"
            raise Stopped(f"saved {self.folder.last} in {place}", self.signals.code)

    def train_step(self, images: Tensor, targets: Tensor) -> None:
        """One update from one global batch."""
        position = self.position
        seed = int(derive(STEP, self.config.seed, position.updates, dist.rank())[0])
        self.schedule.step_update(position.updates)
        images, targets = self.mix(images, targets, position.updates)
        where = f"epoch {position.epoch}, step {position.updates}"
        losses, backward = self.forward_pass(images, targets, seed)
        # One small reduction tells every process the global losses, and whether any was asked to stop.
        asked = torch.full_like(losses["loss"], float(self.signals.received is not None))
        means = dist.reduce_mean(torch.stack([*losses.values(), asked]).detach())
        terms, norm = update(
            losses,
            dict(zip([*losses, "stop"], means, strict=True)),
            self.parameters,
            self.optimizer,
            self.scaler,
            self.config.optim.clip_norm,
            where,
            backward,
        )
        self.stopping = terms.pop("stop") > 0
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

    def forward_pass(
        self, images: Tensor, targets: Tensor, seed: int
    ) -> tuple[dict[str, Tensor], Callable[[Tensor], None]]:
        """The losses of the global batch, and what carries their gradients back."""
        if self.micro is not None:
            return self.micro.losses(images, targets, seed), self.micro.backward
        torch.manual_seed(seed)
        with self.precision.autocast():
            seen = self.teacher(images) if self.teacher is not None else None
            return self.forward(images, targets, seen), Tensor.backward

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
        self.bar.advance(1, {**shown, "left": clock(remaining)}, self.label)

    def tell_epoch(self, steps: int, seconds: float) -> None:
        """The epoch's mean losses and speed."""
        position = self.position
        row: dict[str, Any] = {"epoch": position.epoch, "step": position.updates}
        row |= {name: value / self.steps for name, value in position.sums.items()}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if steps:
            row["images_per_second"] = round(steps * self.config.train.batch_size / seconds, 1)
        self.log.row("epoch", row)

    def save(self, path: Path) -> None:
        """Write a checkpoint, once every step in it is known to be sound."""
        self.tell_pending()
        if dist.is_main():
            self.folder.save(path, self.state())

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
            f"{self.label}  train loss {mean:.4f}  {accuracy}" + ("  best" if improved else "")
        )
        if improved:
            self.save(self.folder.best)
        if improved and dist.is_main():
            save_weights(self.folder.student, self.task.model.state_dict(), self.card(accuracy))
        return accuracy

    def card(self, accuracy: Accuracy) -> dict[str, str]:
        """What `student.safetensors` says of itself."""
        model = self.identity["model"]
        return {"model": model, "epoch": str(self.position.epoch), "acc1": f"{accuracy.acc1:.4f}"}
