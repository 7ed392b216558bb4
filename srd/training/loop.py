"""The training loop that both halves run: from a position in a run to its end, or to a signal."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from srd.data.batches import TrainBatches
from srd.data.views import STEP, derive
from srd.device import Precision, Readback
from srd.distributed import processes, reduce
from srd.distributed.signals import StopSignals
from srd.errors import Stopped
from srd.evaluation.accuracy import Accuracy, EvaluationStopped
from srd.files.checkpoint import save_weights
from srd.run.folder import RunFolder
from srd.run.log import Bar, RunLog, clock
from srd.training.update import check_finite, update

Losses = dict[str, Tensor]  # by name; `loss` is the one to differentiate
Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what it leaves on the way (epochs and steps between; 0: never)."""

    epochs: int
    batch_size: int
    seed: int
    evaluate_every: int = 1
    save_every: int = 1
    save_every_steps: int = 0
    keep_last: int = 2
    keep_every: int = 0
    keep_best: bool = True
    log_every: int = 10
    clip_norm: float | None = None


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


class Loop(ABC):
    """Trains, measures, saves, stops and goes on; a half says what a step and an evaluation are.

    Args:
        loader: yields this process's share of each global batch, in the order of `batches`.
        identity: what a checkpoint must agree on besides the settings (data size, teacher).
        settings: the resolved configuration, saved in every checkpoint.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        plan: Plan,
        loader: Any,
        batches: TrainBatches,
        folder: RunFolder,
        log: RunLog,
        precision: Precision,
        settings: dict[str, Any],
        identity: dict[str, Any],
    ) -> None:
        self.plan, self.loader, self.batches = plan, loader, batches
        self.folder, self.log, self.precision = folder, log, precision
        self.settings, self.identity = settings, identity
        self.device, self.steps = precision.device, len(batches)
        self.scaler = precision.scaler()
        self.position = Position()
        self.pending: Pending | None = None
        self.signals, self.stopping = StopSignals(), False

    # What a half says.

    @abstractmethod
    def model(self) -> nn.Module:
        """What is evaluated and handed on."""

    @abstractmethod
    def start_epoch(self) -> None:
        """Put every module into its training or evaluation mode."""

    @abstractmethod
    def forward_pass(self, batch: Any, seed: int) -> tuple[Losses, Backward]:
        """The losses of the global batch, and what carries their gradients back."""

    @abstractmethod
    def set_rate(self, updates: int) -> None:
        """Set the learning rate for the step that follows `updates` others."""

    def end_epoch(self, accuracy: Accuracy | None) -> None:  # noqa: B027 (a half may have nothing to do)
        """Called when an epoch is over, with its accuracy where it was measured."""

    @abstractmethod
    def measure(self) -> Accuracy:
        """The accuracy of `model` on the validation images."""

    @abstractmethod
    def learned(self) -> dict[str, Any]:
        """Weights, schedule, and whatever else a step changes, besides optimizer and scaler."""

    @abstractmethod
    def load_learned(self, state: dict[str, Any]) -> None:
        """Take up what `learned` returned."""

    def after_best(self) -> None:  # noqa: B027 (a half may have nothing to add)
        """Called on the main process when a new best model has been saved."""

    # What both share.

    def state(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values.

        The generators need no saving: every step derives them from (seed, updates).
        """
        return {
            **self.learned(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": {"seed": self.plan.seed, "updates": self.position.updates},
            "position": asdict(self.position),
            "epoch": self.position.epoch,
            "max_accuracy": self.position.best_acc1,
            "config": {**self.settings, "identity": self.identity},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.load_learned(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.position = Position(**state["position"])
        at = self.position
        self.log.info(f"resuming in {self.label}, step {at.step} ({at.updates} updates made)")

    def fit(self) -> Accuracy:
        """Train to the end; returns the accuracy of the last epoch.

        Raises:
            Stopped: a signal came; the run is saved. RunFailed: it cannot go on.
        """
        plan, position = self.plan, self.position
        total = plan.epochs * self.steps
        with self.signals.listening(), self.log.bar(self.label, total, position.updates) as bar:
            while True:
                self.train_epoch(bar)
                done = position.epoch + 1
                due = plan.evaluate_every and done % plan.evaluate_every == 0
                try:
                    accuracy = self.evaluate_epoch() if due or done == plan.epochs else None
                except EvaluationStopped:
                    self.save_and_stop()
                if accuracy is not None and done == plan.epochs:
                    return accuracy
                self.end_epoch(accuracy)
                position.epoch, position.step, position.sums = done, 0, {}

    @property
    def label(self) -> str:
        """Where the run is, for people."""
        return f"epoch {self.position.epoch + 1}/{self.plan.epochs}"

    def train_epoch(self, bar: Bar) -> None:
        """The steps that are left of this epoch, and a checkpoint where one is due."""
        position, plan = self.position, self.plan
        self.start_epoch()
        self.batches.start_at(position.epoch, position.step)
        started = self.clock = time.perf_counter()
        first = position.step
        for batch in self.loader if position.step < self.steps else ():
            self.train_step(batch, bar)
            self.stop_if_asked()
            if plan.save_every_steps and position.updates % plan.save_every_steps == 0:
                self.save_last()
        self.tell_pending(bar)
        self.tell_epoch(position.step - first, time.perf_counter() - started)
        done = position.epoch + 1
        if done == plan.epochs or done % plan.save_every == 0:
            self.save_last()
        if plan.keep_every and done % plan.keep_every == 0:
            self.save(self.folder.checkpoints / f"epoch_{position.epoch:04}.pth")

    def train_step(self, batch: Any, bar: Bar) -> None:
        """One update from one global batch."""
        position = self.position
        seed = int(derive(STEP, self.plan.seed, position.updates, processes.rank())[0])
        where = f"epoch {position.epoch}, step {position.updates}"
        self.set_rate(position.updates)
        losses, backward = self.forward_pass(batch, seed)
        # One small reduction tells every process the global losses, and whether any was asked to stop.
        asked = torch.full_like(losses["loss"], float(self.signals.received is not None))
        means = reduce.reduce_mean(torch.stack([*losses.values(), asked]).detach())
        logged = dict(zip([*losses, "stop"], means, strict=True))
        rate = self.optimizer.param_groups[0]["lr"]
        clip = self.plan.clip_norm
        terms, norm = update(losses, logged, self.optimizer, self.scaler, clip, where, backward)
        self.stopping = terms.pop("stop") > 0
        self.tell_pending(bar)
        now = time.perf_counter()
        speed = self.plan.batch_size / (now - self.clock)
        position.seconds, self.clock = position.seconds + now - self.clock, now
        row = {"epoch": position.epoch, "step": position.updates, **terms, "lr": rate}
        self.pending = Pending({**row, "images_per_second": round(speed, 1)}, norm, where)
        for name, value in terms.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        position.step, position.updates = position.step + 1, position.updates + 1

    def stop_if_asked(self) -> None:
        """Save and stop when a signal has come, to this process or to another."""
        if self.stopping:
            self.save_and_stop()

    def save_and_stop(self) -> NoReturn:
        """Leave the run so that it goes on from here."""
        self.save_last()
        processes.barrier()  # torchrun ends the others when one leaves: wait until it is saved
        place = f"{self.label}, step {self.position.step} of {self.steps}"
        raise Stopped(f"saved {self.folder.last} in {place}", self.signals.code)

    def tell_pending(self, bar: Bar | None = None) -> None:
        """Log the step before, whose gradient norm has arrived by now.

        In fp16 an infinite norm is the loss scale's business; otherwise it ends the run, before
        anything made from it could be saved.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        norm = pending.norm.wait()["grad_norm"]
        if not self.scaler.is_enabled():
            check_finite({"grad_norm": norm}, pending.where, "nothing was saved from there on")
        row = {**pending.row, "grad_norm": norm if math.isfinite(norm) else None}
        if row["step"] % self.plan.log_every == 0:
            self.log.row("step", row)
        if bar is not None:
            left = self.plan.epochs * self.steps - self.position.updates
            remaining = left * self.position.seconds / max(1, self.position.updates)
            hidden = ("epoch", "step", "grad_norm", "images_per_second")
            shown = {name: value for name, value in row.items() if name not in hidden}
            speed = {"images/s": row["images_per_second"], "left": clock(remaining)}
            bar.advance(1, {**shown, **speed}, self.label)

    def tell_epoch(self, steps: int, seconds: float) -> None:
        """The epoch's mean losses and speed."""
        position = self.position
        row: dict[str, Any] = {"epoch": position.epoch, "step": position.updates}
        row |= {name: value / self.steps for name, value in position.sums.items()}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if steps:
            row["images_per_second"] = round(steps * self.plan.batch_size / seconds, 1)
        self.log.row("epoch", row)

    def save_last(self) -> None:
        """Write `last.pth`, and keep the ones before it that the plan asks for."""
        self.tell_pending()
        if processes.is_main():
            self.folder.keep_last(self.plan.keep_last)
        self.save(self.folder.last)

    def save(self, path: Path) -> None:
        """Write a checkpoint, once every step in it is known to be sound."""
        self.tell_pending()
        if processes.is_main():
            self.folder.save(path, self.state())

    def evaluate_epoch(self) -> Accuracy:
        """Measure the model, log it, and keep it when it is the best so far."""
        position = self.position
        reduce.share_buffers(self.model())  # with statistics of each share, they differ
        accuracy = self.measure()
        self.log.row("eval", {"epoch": position.epoch, "step": position.updates, **accuracy.row()})
        improved = accuracy.acc1 > position.best_acc1
        if improved:
            position.best_acc1, position.best_epoch = accuracy.acc1, position.epoch
        mean = position.sums["loss"] / self.steps
        best = "  best" if improved else ""
        self.log.info(f"{self.label}  train loss {mean:.4f}  {accuracy}{best}")
        if improved and self.plan.keep_best:
            self.save(self.folder.best)
        if improved and processes.is_main():
            about = {"model": self.identity["model"], "epoch": str(position.epoch)}
            about["acc1"] = f"{accuracy.acc1:.4f}"
            save_weights(self.folder.student, self.model().state_dict(), about)
            self.after_best()
        return accuracy
