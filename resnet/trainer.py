"""A torchdistill box, trained by the shared loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from resnet import box as boxes
from resnet.evaluation import eval_loader, measure
from resnet.inputs import TrainInput, split_items
from resnet.models import Models
from resnet.recipe import Options, Recipe
from srd.device import Precision
from srd.distributed import reduce
from srd.evaluation.accuracy import Accuracy
from srd.run.folder import RunFolder
from srd.run.log import RunLog
from srd.training.loop import Backward, Loop, Losses, Plan


class BoxLoop(Loop):
    """A torchdistill box, trained by the shared loop."""

    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        models: Models,
        box: Any,
        folder: RunFolder,
        log: RunLog,
        precision: Precision,
        inputs: TrainInput,
        identity: dict[str, Any],
    ) -> None:
        run = recipe.run
        plan = Plan(
            epochs=box.num_epochs,
            batch_size=inputs.batches.batch_size,
            seed=options.seed,
            save_every=run.save_every,
            save_every_steps=run.save_every_steps,
            keep_last=run.keep_last,
            keep_every=run.keep_every,
            keep_best=run.keep_best,
            log_every=run.log_every,
            clip_norm=box.max_grad_norm,
        )
        super().__init__(
            plan, inputs.loader, inputs.batches, folder, log, precision, recipe.settings, identity
        )
        self.recipe, self.models, self.box = recipe, models, box
        self.optimizer, self.schedule = box.optimizer, box.lr_scheduler
        self.parameters = [p for group in box.optimizer.param_groups for p in group["params"]]
        self.val = eval_loader(box.val_data_loader, precision, options.seed)

    def model(self) -> nn.Module:
        return self.models.student

    def start_epoch(self) -> None:
        boxes.start_epoch(self.box, self.models, self.position.epoch)

    def set_rate(self, updates: int) -> None:
        every = self.box.scheduling_step or 0
        if self.schedule is not None and every > 0 and updates and updates % every == 0:
            self.schedule.step()

    def end_epoch(self, accuracy: Accuracy | None) -> None:
        self.box.post_epoch_process(metrics=accuracy.acc1 if accuracy else None)

    def forward_pass(self, batch: Any, seed: int) -> tuple[Losses, Backward]:
        images, targets, more = split_items(batch)
        images = images.to(self.device, self.precision.dtype, non_blocking=True)
        if self.recipe.run.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        targets = targets.to(self.device, non_blocking=True)
        torch.manual_seed(seed)
        with self.precision.autocast():
            total = self.box.forward_process(images, targets, more)
        return boxes.named_losses(self.box, total), self.backward

    def backward(self, loss: Tensor) -> None:
        """Gradients, averaged over processes."""
        loss.backward()
        reduce.average_gradients(self.parameters)

    def measure(self) -> Accuracy:
        return measure(
            self.models.student,
            self.val,
            self.precision,
            self.log,
            "evaluating",
            self.signals.asked,
        )

    def learned(self) -> dict[str, Any]:
        return {
            "model": self.models.student.state_dict(),
            "extras": boxes.extras(self.box, self.models),
            "lr_scheduler": self.schedule.state_dict() if self.schedule is not None else None,
        }

    def load_learned(self, state: dict[str, Any]) -> None:
        self.models.student.load_state_dict(state["model"])
        boxes.load_extras(self.box, state["extras"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["lr_scheduler"])
