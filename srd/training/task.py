"""The task: a student, its teacher, and the losses between them, by name.

The student and the representation loss (with its projector) are trained and saved. The teacher is
held, but it is no part of the module: it is neither trained, nor saved, nor shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from srd.config.fields import Distill
from srd.device import Precision
from srd.distributed.processes import data_parallel
from srd.files.weights import PROJECTOR_PREFIX, split
from srd.method.logits import cross_entropy, distillation_kl
from srd.method.losses import LOSSES
from srd.models.outputs import Output
from srd.models.students import Student
from srd.training.micro_batches import MicroBatches, in_parts

Teach = Callable[[Tensor], Output]  # images (B, 3, H, W) to what the teacher says of them


class DistillationTask(nn.Module):
    """ce_weight * CE + kl_weight * KL to the teacher's logits + repr_weight * the named loss.

    Without targets there is no CE.

    A student with two heads learns its targets with the first and the teacher's logits with the
    second; without a teacher, both learn the targets. One head learns all.

    Args:
        student: the network; what it reads must be what the loss reads.
        representation_loss: None where the named loss has none.
        distill: the name of the loss, the weights and the temperature.
        teach: None for losses without a teacher.
        smoothing: of class-index targets (mixed targets are smoothed when mixed).
        knows_classes: whether the teacher's logits are of the student's classes; else no KL.
        labelled: whether there are targets; without, the teacher alone teaches, both heads its logits.
    """

    teach: Teach | None

    def __init__(
        self,
        student: Student,
        representation_loss: nn.Module | None,
        *,
        distill: Distill,
        teach: Teach | None,
        smoothing: float,
        precision: Precision,
        knows_classes: bool = True,
        labelled: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.distillation_loss = student, representation_loss
        self.distill, self.loss = distill, LOSSES[distill.loss.name]
        self.smoothing, self.precision = smoothing, precision
        self.soft, self.labelled = self.loss.logits and knows_classes, labelled
        self.hold(teach)
        # What a step calls: the modules themselves, or what stands before them.
        self.call_student: Callable[[Tensor], Output] = student
        self.call_loss: nn.Module | None = representation_loss

    @property
    def model(self) -> nn.Module:
        """What is evaluated and handed on: the student's network under its own names."""
        return self.student.model

    def share_out(self, micro_batch: int | None) -> None:
        """Average gradients over processes; with `micro_batch`, run so many images at a time."""
        if self.distillation_loss is not None:
            self.call_loss = data_parallel(self.distillation_loss, self.precision.device)
        if micro_batch is None:
            self.call_student = data_parallel(self.student, self.precision.device)
        else:
            self.call_student = MicroBatches(self.student, micro_batch, self.precision)
            self.hold(in_parts(self.teach, micro_batch) if self.teach else None)

    def hold(self, teach: Teach | None) -> None:
        """Take a teacher without making it a part of this module, whatever it is."""
        object.__setattr__(self, "teach", teach)

    def losses(self, batch: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
        """The losses by name, `loss` their weighted sum, scalars in float32 or better.

        Shapes: images (B, 3, H, W); targets (B,) or, mixed, (B, C); for a loss that needs them, keys
        (B, 2).
        """
        images, targets, *keys = batch
        distill = self.distill
        torch.manual_seed(seed)
        with self.precision.autocast():
            z_t = self.teach(images) if self.teach is not None else None
            z_s = self.call_student(images)
            soft = z_s.logits if z_s.distilled_logits is None else z_s.distilled_logits
            terms, loss = {}, z_s.logits.new_zeros(())
            if self.labelled:
                terms["ce"] = cross_entropy(z_s.logits, targets, self.smoothing)
                if z_t is None and soft is not z_s.logits:
                    terms["ce"] = (terms["ce"] + cross_entropy(soft, targets, self.smoothing)) / 2
                loss = distill.ce_weight * terms["ce"]
            if z_t is not None and self.soft:
                terms["kl"] = distillation_kl(soft, z_t.logits, distill.temperature)
                if not self.labelled and soft is not z_s.logits:
                    first = distillation_kl(z_s.logits, z_t.logits, distill.temperature)
                    terms["kl"] = (terms["kl"] + first) / 2
                loss = loss + distill.kl_weight * terms["kl"]
            if z_t is not None and self.call_loss is not None:
                reads = self.loss.reads or "features"
                # without labels, nothing else teaches the first head
                heads = soft if self.labelled else (soft + z_s.logits) / 2
                own = heads if reads == "logits" else z_s.read(reads)
                given = {"targets": targets, "keys": keys[0] if keys else None}
                needed = {name: given[name] for name in self.loss.needs}
                terms["repr"] = self.call_loss(own, z_t.read(reads), **needed)
                loss = loss + distill.repr_weight * terms["repr"]
        return {"loss": loss, **terms}

    def no_weight_decay(self) -> set[str]:
        """Parameters that the student keeps from weight decay, besides biases and 1-d ones."""
        named: Any = getattr(self.model, "no_weight_decay", set)
        return {f"student.model.{name}" for name in named()}

    def checkpoint(self) -> dict[str, Any]:
        """Student and projector under the names of the released checkpoints."""
        weights = dict(self.model.state_dict())
        if self.distillation_loss is not None:
            for name, value in self.distillation_loss.state_dict().items():
                weights[PROJECTOR_PREFIX + name] = value
        return {"model": weights}

    def load_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Load what `checkpoint` returned, strictly."""
        student, extras = split(state["model"])
        self.model.load_state_dict(student)
        if self.distillation_loss is not None:
            self.distillation_loss.load_state_dict(
                {name.removeprefix(PROJECTOR_PREFIX): value for name, value in extras.items()}
            )
