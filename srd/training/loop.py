"""The training loop: from a position in a run to its end, or to a signal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from srd.config.fields import Plan
from srd.data.views import STEP, derive
from srd.device import Precision
from srd.distributed import processes, reduce
from srd.distributed.signals import StopSignals
from srd.errors import Stopped
from srd.evaluation.accuracy import EvaluationStopped, Measured
from srd.files.checkpoint import save_weights
from srd.run.folder import RunFolder
from srd.run.log import Bar, RunLog, clock
from srd.run.saver import Saver
from srd.training.averaging import Average, trained
from srd.training.parts import Evaluate, Pending, Position, Schedule, Span, Task, TrainData
from srd.training.probe import ProjectorProbe
from srd.training.update import check_finite, update

ASKED = "asked to stop"  # sent with the losses
HANDED_ON = ("acc1", "distance")  # numbers that are written beside a student's weights


class Loop:
    """Trains, measures, saves, stops and goes on.

    Args:
        clip_norm: of the gradients; None for no clipping.
        settings: the run's configuration, saved in every checkpoint.
        backward: from the (scaled) loss to gradients that are averaged over processes.
        span: the epochs that are this loop's, of a run in stages; None: all of the plan's.
        start_epoch: puts every module into its training or evaluation mode.
        end_epoch: called between two epochs, with the accuracy where it was measured.
        move_schedule: puts a schedule where it would be after so many epochs and steps, had it been
            there from the start; for a run that goes on under other settings.
        probe: of the projector, for the log.
    """

    def __init__(
        self,
        *,
        task: Task,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None,
        plan: Plan,
        seed: int,
        clip_norm: float | None,
        data: TrainData,
        evaluate: Evaluate,
        precision: Precision,
        folder: RunFolder,
        log: RunLog,
        settings: Mapping[str, Any],
        start_epoch: Callable[[int], object],
        end_epoch: Callable[[Measured | None], object] = lambda accuracy: None,
        backward: Callable[[Tensor], None] = Tensor.backward,
        move_schedule: Callable[[int, int], object] = lambda epochs, steps: None,
        span: Span | None = None,
        probe: ProjectorProbe | None = None,
    ) -> None:
        self.span, self.probe = span or Span(0, plan.epochs), probe or ProjectorProbe(None)
        self.task, self.optimizer, self.schedule = task, optimizer, schedule
        self.plan, self.seed, self.clip_norm = plan, seed, clip_norm
        self.data, self.steps, self.evaluate = data, len(data.batches), evaluate
        self.folder, self.log, self.settings = folder, log, settings
        self.start_epoch, self.end_epoch, self.backward = start_epoch, end_epoch, backward
        self.move_schedule, self.scaler = move_schedule, precision.scaler()
        self.average = (
            Average(task.model, plan.ema_decay, plan.ema_warmup) if plan.ema_decay else None
        )
        self.position = Position(epoch=self.span.first, updates=self.span.updates)
        self.extended, self.saver = list[dict[str, Any]](), Saver()
        self.pending: Pending | None = None
        self.signals, self.stopping = StopSignals(), False

    def state(self) -> dict[str, Any]:
        """Everything that the run needs to go on, as tensors and plain values.

        The generators need no saving: every step derives them from (seed, updates).
        """
        task = self.task.checkpoint()
        extended = {"extended": self.extended} if self.extended else {}
        return {
            **(self.average.saved(task) if self.average else task),
            "lr_scheduler": self.schedule.state_dict() if self.schedule else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": {"seed": self.seed, "updates": self.position.updates},
            "position": asdict(self.position),
            "epoch": self.position.epoch,
            "max_accuracy": self.position.best_acc1,
            "steps": self.steps,
            "batch_size": self.plan.batch_size,
            "config": dict(self.settings),
            **extended,
        }

    def load_state(self, state: Mapping[str, Any], *, changed: bool = False) -> None:
        """Take up what `state` returned.

        Args:
            changed: under other settings, which hold for the optimizer and the schedule from here.
        """
        self.task.load_checkpoint(trained(state))
        if self.average:
            self.average.load(state)
        self.position = at = Position(**state["position"])
        self.extended = list(state.get("extended", []))
        optimizer = state["optimizer"]
        if changed:
            self.move_schedule(at.epoch - self.span.first, self.place)
            optimizer = {**optimizer, "param_groups": self.optimizer.state_dict()["param_groups"]}
        elif self.schedule is not None:
            own, saved = self.schedule.state_dict(), state["lr_scheduler"]  # no more: its methods
            self.schedule.load_state_dict({key: saved[key] for key in own if key in saved})
        self.optimizer.load_state_dict(optimizer)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.log.info(f"resuming in {self.label}, step {at.step} ({at.updates} updates made)")

    def follow(self, before: Loop) -> None:
        """Start where the stage before has ended, without its best model and its losses' sums."""
        at = before.position
        self.position = Position(epoch=self.span.first, updates=at.updates, seconds=at.seconds)

    def fit(self) -> Measured:
        """Train to the end; returns the accuracy of the last epoch.

        Raises:
            Stopped: a signal came; the run is saved. RunFailed: it cannot go on.
        """
        plan, position = self.plan, self.position
        total = (self.span.end - self.span.first) * self.steps
        with (
            self.saver.finishing(),
            self.signals.listening(),
            self.log.bar(self.label, total, self.place) as bar,
        ):
            while True:
                self.train_epoch(bar)
                done = position.epoch + 1
                due = plan.evaluate_every and done % plan.evaluate_every == 0
                try:
                    accuracy = self.evaluate_epoch() if due or done >= self.span.end else None
                except EvaluationStopped:
                    self.save_and_stop()
                if accuracy is not None and done >= self.span.end:
                    return accuracy
                self.end_epoch(accuracy)
                position.epoch, position.step, position.sums, position.observed = done, 0, {}, {}

    @property
    def place(self) -> int:
        """Steps from the start of the span to here, as the settings of now count them."""
        return (self.position.epoch - self.span.first) * self.steps + self.position.step

    @property
    def label(self) -> str:
        """Where the run is, for people."""
        return f"epoch {self.position.epoch + 1}/{self.plan.epochs}"

    def train_epoch(self, bar: Bar) -> None:
        """The steps that are left of this epoch, and a checkpoint where one is due."""
        position, plan = self.position, self.plan
        self.start_epoch(position.epoch)
        self.data.batches.start_at(position.epoch, position.step)
        started = self.clock = time.perf_counter()
        first = position.step
        for batch in self.data.loader if position.step < self.steps else ():
            self.train_step(batch, bar)
            if self.stopping:
                self.save_and_stop()
            if plan.save_every_steps and position.updates % plan.save_every_steps == 0:
                self.save_last()
        self.settle(bar)
        if self.stopping:
            self.save_and_stop()
        self.log_epoch(position.step - first, time.perf_counter() - started)
        done = position.epoch + 1
        if done >= self.span.end or done % plan.save_every == 0:
            self.save_last()
        if plan.keep_every and done % plan.keep_every == 0:
            self.save(self.folder.checkpoints / f"epoch_{position.epoch:04}.pth")

    def train_step(self, batch: Any, bar: Bar) -> None:
        """One update from one global batch."""
        position = self.position
        seed = int(derive(STEP, self.seed, position.updates, processes.rank())[0])
        where = f"epoch {position.epoch}, step {position.updates}"
        if self.schedule is not None:
            self.schedule.step_update(self.place)
        losses = self.task.losses(self.data.prepare(batch, self.place), seed)
        # One small reduction tells every process the global losses, and whether any was asked to stop.
        asked = torch.full_like(losses["loss"], float(self.signals.received is not None))
        means = reduce.reduce_mean(torch.stack([*losses.values(), asked]).detach())
        terms, norm = update(
            losses["loss"],
            dict(zip([*losses, ASKED], means, strict=True)),
            optimizer=self.optimizer,
            scaler=self.scaler,
            clip_norm=self.clip_norm,
            where=where,
            backward=self.backward,
        )
        self.saver.check()
        self.settle(bar)
        now = time.perf_counter()
        speed = self.plan.batch_size / (now - self.clock)
        position.seconds, self.clock = position.seconds + now - self.clock, now
        row = {"epoch": position.epoch, "step": position.updates, **dict.fromkeys(losses)}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], "images_per_second": round(speed, 1)}
        self.pending = Pending(row, terms, norm, where)
        position.step, position.updates = position.step + 1, position.updates + 1
        if terms.is_here:
            self.settle(bar)
        if self.average:
            self.average.update(position.updates)
        if position.step == self.steps:
            position.observed = self.probe.last_batch()

    def save_and_stop(self) -> NoReturn:
        """Leave the run so that it goes on from here."""
        self.save_last()
        self.saver.wait()
        processes.barrier()  # torchrun ends the others when one leaves: wait until it is saved
        place = f"{self.label}, step {self.position.step} of {self.steps}"
        raise Stopped(f"saved {self.folder.last} in {place}", self.signals.code)

    def settle(self, bar: Bar | None = None) -> None:
        """Check, sum up and log the last step; on a GPU that is the one before, while one is under way.

        In fp16 an infinite norm is the loss scale's business; otherwise it ends the run, unsaved.
        """
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        terms, norm = pending.terms.wait(), pending.norm.wait()["grad_norm"]
        self.stopping = terms.pop(ASKED) > 0
        numbers = terms if self.scaler.is_enabled() else {**terms, "grad_norm": norm}
        check_finite(numbers, pending.where, "nothing was saved from there on")
        sums = self.position.sums
        self.position.sums = {name: sums.get(name, 0.0) + value for name, value in terms.items()}
        row = {**pending.row, **terms, "grad_norm": norm if math.isfinite(norm) else None}
        if row["step"] % self.plan.log_every == 0:
            self.log.row("step", row)
        if bar is not None:
            left = (self.span.end - self.span.first) * self.steps - self.place
            remaining = left * self.position.seconds / max(1, self.position.updates)
            hidden = ("epoch", "step", "grad_norm", "images_per_second")
            shown = {name: value for name, value in row.items() if name not in hidden}
            # first what one looks for: a narrow terminal cuts off the rest
            first = {"left": clock(remaining), "images/s": row["images_per_second"]}
            bar.advance(1, {**first, **shown}, self.label)

    def log_epoch(self, steps: int, seconds: float) -> None:
        """The epoch's mean losses and speed."""
        at = self.position
        means = {name: value / self.steps for name, value in at.sums.items()}
        row: dict[str, Any] = {"epoch": at.epoch, "step": at.updates, **means}
        row["lr"] = self.optimizer.param_groups[0]["lr"]
        if steps:
            row["images_per_second"] = round(steps * self.plan.batch_size / seconds, 1)
        self.log.row("epoch", row)

    def save_last(self) -> None:
        """Write `last.pth`, and keep the ones before it that the plan asks for."""
        self.save(self.folder.last, before=lambda: self.folder.keep_last(self.plan.keep_last))

    def save(self, path: Path, before: Callable[[], object] = lambda: None) -> None:
        """Write a checkpoint, once every step in it is known to be sound, while training goes on."""
        self.settle()
        if processes.is_main():
            write = partial(self.folder.save, path)
            self.saver.save(self.state(), lambda state: (before(), write(state)))

    def evaluate_epoch(self) -> Measured:
        """Measure the model, log it, and keep the best so far.

        Where there is an average, the model itself gets a row of its own (`"model": "raw"`), and the
        average is what counts.
        """
        if self.average:
            self.log_raw(self.evaluate(self.signals.asked))
        with self.average.in_place() if self.average else nullcontext():
            reduce.share_buffers(self.task.model)  # with statistics of each share, they differ
            accuracy = self.evaluate(self.signals.asked)
            improved = self.take_note(accuracy)
            if improved and processes.is_main():
                position = self.position
                measured = {k: f"{v:.4f}" for k, v in accuracy.row().items() if k in HANDED_ON}
                about = {"epoch": str(position.epoch), **measured}
                about = {"model": self.settings["identity"]["model"], **about}
                save_weights(self.folder.student, self.task.model.state_dict(), about)
        if improved and self.plan.keep_best:
            self.save(self.folder.best)
        return accuracy

    def log_raw(self, accuracy: Measured) -> None:
        """What was measured of the weights that are trained, beside their average."""
        row = accuracy.row()
        place = {"model": "raw", "epoch": self.position.epoch, "step": self.position.updates}
        self.log.row("eval", {**place, **row}, board={f"raw_{k}": v for k, v in row.items()})
        self.log.info(f"{self.label}  without the average  {accuracy}")

    def take_note(self, accuracy: Measured) -> bool:
        """Log what was measured; whether it is the best so far."""
        position = self.position
        place = {"epoch": position.epoch, "step": position.updates}
        projector = {**position.observed, **self.probe.spectrum()}
        self.log.row("eval", {**place, **accuracy.row(), **projector})
        improved = accuracy.score > position.best_acc1
        if improved:
            position.best_acc1, position.best_epoch = accuracy.score, position.epoch
        mean = position.sums["loss"] / self.steps
        best = "  best" if improved else ""
        self.log.info(f"{self.label}  train loss {mean:.4f}  {accuracy}{best}")
        return improved
