"""Tasks: one module that holds all that is trained, and whose `forward` returns the named losses.

Data-parallel training wraps the task, so every gradient, the projector's too, passes through its
hooks. The teacher stays outside: it is neither wrapped, nor trained, nor saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deit.student import ConvStemDeiT, StudentOutput
from srd.config.fields import Distill
from srd.files.weights import PROJECTOR_PREFIX, split
from srd.method.logits import cross_entropy, distillation_kl
from srd.method.simple_recipe import SimpleRecipeLoss
from srd.models.outputs import TeacherOutput


class StudentTask(nn.Module):
    """A student with its losses.

    `srd`: CE on the class head, KL to the teacher on the conv-token head, and the representation
    loss. `kd`: without the representation loss. `none`: CE on both heads, averaged, so that both
    are trained although no teacher is there.

    Args:
        student: the network.
        config: method, weights and the method's constants.
        teacher_width: D_t; needed for `srd`.
        smoothing: of class-index targets (mixed targets are smoothed when mixed).
        global_statistics: of the representation loss; see `SimpleRecipeLoss`.
    """

    def __init__(
        self,
        student: ConvStemDeiT,
        config: Distill,
        teacher_width: int | None = None,
        smoothing: float = 0.0,
        global_statistics: bool = True,
    ) -> None:
        super().__init__()
        self.student, self.config, self.smoothing = student, config, smoothing
        self.distillation_loss: SimpleRecipeLoss | None = None
        if config.method == "srd":
            assert teacher_width is not None
            self.distillation_loss = SimpleRecipeLoss(
                student.embed_dim,
                teacher_width,
                config.match,
                config.alpha,
                config.bn_eps,
                config.log_eps,
                across_ranks=global_statistics,
            )

    @property
    def model(self) -> nn.Module:
        """What is evaluated and handed on."""
        return self.student

    def forward(
        self, images: Tensor, targets: Tensor, teacher: TeacherOutput | None = None
    ) -> dict[str, Tensor]:
        """The losses by name, `loss` their weighted sum, scalars in float32.

        Shapes: images (B, 3, H, W); targets (B,) or, mixed, (B, C).
        """
        return self.losses(self.student(images), targets, teacher)

    def losses(
        self, out: StudentOutput, targets: Tensor, teacher: TeacherOutput | None
    ) -> dict[str, Tensor]:
        """The losses of a student's output; see `forward`."""
        config = self.config
        ce = cross_entropy(out.logits, targets, self.smoothing)
        if config.method == "none":
            ce = (ce + cross_entropy(out.conv_logits, targets, self.smoothing)) / 2
            return {"loss": config.ce_weight * ce, "ce": ce}
        assert teacher is not None
        kl = distillation_kl(out.conv_logits, teacher.logits, config.temperature)
        loss = config.ce_weight * ce + config.kl_weight * kl
        terms = {"ce": ce, "kl": kl}
        if self.distillation_loss is not None:
            terms["repr"] = self.distillation_loss(out.features, teacher.features)
            loss = loss + config.repr_weight * terms["repr"]
        return {"loss": loss, **terms}

    def no_weight_decay(self) -> set[str]:
        """Parameters that the student keeps from weight decay, besides biases and 1-d ones."""
        return {f"student.{name}" for name in self.student.no_weight_decay()}

    def weights(self) -> dict[str, Tensor]:
        """Student and projector under the names of the released checkpoints."""
        found = dict(self.student.state_dict())
        if self.distillation_loss is not None:
            for name, value in self.distillation_loss.state_dict().items():
                found[PROJECTOR_PREFIX + name] = value
        return found

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Load what `weights` returned, strictly."""
        student, projector = split_weights(weights)
        self.student.load_state_dict(student)
        if self.distillation_loss is not None:
            self.distillation_loss.load_state_dict(projector)


class ClassifierTask(nn.Module):
    """Any classifier with its cross-entropy: how teachers are trained."""

    def __init__(self, model: nn.Module, smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(
        self, images: Tensor, targets: Tensor, teacher: TeacherOutput | None = None
    ) -> dict[str, Tensor]:
        return self.losses(self.model(images), targets)

    def losses(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The losses of the model's logits, (B, C)."""
        ce = cross_entropy(logits, targets, self.smoothing)
        return {"loss": ce, "ce": ce}

    def no_weight_decay(self) -> set[str]:
        named: Any = getattr(self.model, "no_weight_decay", set)
        return {f"model.{name}" for name in named()}

    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(weights)


Task = StudentTask | ClassifierTask


def split_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A released or own checkpoint's weights as (student's, projector's with bare names)."""
    student, extras = split(weights)
    return student, {name.removeprefix(PROJECTOR_PREFIX): value for name, value in extras.items()}
