"""What a step, a checkpoint and an evaluation are in the DeiT half; `srd.training.loop` does the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from srd.config.fields import Config
from srd.config.layers import to_mapping
from srd.data.augment import Mix
from srd.data.inputs import Inputs, measure
from srd.data.loader import Batch, to_device
from srd.device import Precision
from srd.evaluation.accuracy import Accuracy, evaluating
from srd.models.teacher import FrozenTeacher
from srd.run.folder import RunFolder
from srd.run.log import RunLog
from srd.training.loop import Backward, Loop, Losses, Plan
from srd.training.micro_batches import MicroBatches
from srd.training.optim import create_optimizer, create_schedule
from srd.training.task import Task


class Trainer(Loop):
    """Trains one task and leaves a run's files.

    Args:
        task: what is trained, on its device.
        forward: the task, or its data-parallel wrapper.
        teacher: None for the baselines without one.
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
        precision: Precision,
        identity: dict[str, Any],
    ) -> None:
        assert inputs.train is not None and inputs.train_batches is not None
        train, optim = config.train, config.optim
        plan = Plan(
            epochs=train.epochs,
            batch_size=train.batch_size,
            seed=config.seed,
            evaluate_every=train.evaluate_every,
            save_every=train.save_every,
            save_every_steps=train.save_every_steps,
            keep_last=train.keep_last,
            keep_every=train.keep_every,
            keep_best=train.keep_best,
            log_every=train.log_every,
            clip_norm=optim.clip_norm,
        )
        super().__init__(
            plan,
            inputs.train,
            inputs.train_batches,
            folder,
            log,
            precision,
            to_mapping(config),
            identity,
        )
        self.task, self.forward, self.teacher, self.inputs = task, forward, teacher, inputs
        self.mix = Mix(config, inputs.num_classes)
        self.optimizer = create_optimizer(task, optim, train.batch_size, self.device)
        self.schedule = create_schedule(
            self.optimizer, optim, train.batch_size, self.steps, train.epochs
        )
        self.micro: MicroBatches | None = None
        if train.micro_batch is not None:
            self.micro = MicroBatches(task, teacher, train.micro_batch, precision)

    def model(self) -> nn.Module:
        return self.task.model

    def start_epoch(self) -> None:
        self.forward.train()

    def set_rate(self, updates: int) -> None:
        self.schedule.step_update(updates)

    def forward_pass(self, batch: Batch, seed: int) -> tuple[Losses, Backward]:
        for name in self.inputs.broken.check(batch):
            self.log.info(f"skipped {name}")
        images, targets = to_device(batch, self.device, self.precision.dtype)
        images, targets = self.mix(images, targets, self.position.updates)
        if self.micro is not None:
            return self.micro.losses(images, targets, seed), self.micro.backward
        torch.manual_seed(seed)
        with self.precision.autocast():
            seen = self.teacher(images) if self.teacher is not None else None
            return self.forward(images, targets, seen), Tensor.backward

    def measure(self) -> Accuracy:
        with evaluating(self.task.model):
            return measure(
                self.task.model, self.inputs, self.precision, self.log, stop=self.signals.asked
            )

    def learned(self) -> dict[str, Any]:
        return {"model": self.task.weights(), "lr_scheduler": self.schedule.state_dict()}

    def load_learned(self, state: dict[str, Any]) -> None:
        self.task.load_weights(state["model"])
        self.schedule.load_state_dict(state["lr_scheduler"])
