"""Pictures without labels: what of a teacher can teach, and what is measured instead of accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from srd.config.fields import Config, Distill
from srd.data.inputs import Inputs
from srd.device import Precision
from srd.errors import UserError
from srd.evaluation.accuracy import evaluating
from srd.evaluation.likeness import Likeness, measure_likeness
from srd.method.losses import LOSSES
from srd.models.frozen import Normalization
from srd.models.own_head import classes_of
from srd.models.teacher import LoadedTeacher, open_teacher
from srd.run.log import RunLog
from srd.training.task import DistillationTask


def open_unlabelled_teacher(
    config: Config, distill: Distill, precision: Precision
) -> tuple[LoadedTeacher, int]:
    """The teacher with the head that it has, and the student's classes: as many, or 0 for no head.

    Raises:
        UserError: as `open_teacher`; its weights would have to be trained on labels first; or the loss
            reads logits that it does not have.
    """
    loss = LOSSES[distill.loss.name]
    if config.teacher.recipe and not config.teacher.checkpoint:
        raise UserError(
            "--unlabelled: teacher.recipe trains a teacher from labels; give it trained, "
            "--teacher-checkpoint"
        )
    classes = classes_of(config.teacher)
    teacher = open_teacher(
        config.teacher,
        num_classes=classes or 1,  # one that is not read
        image_size=config.model.image_size,
        given=Normalization(config.data.mean, config.data.std),
        precision=precision,
    )
    by_logits = loss.reads == "logits" or (loss.logits and distill.kl_weight > 0)
    if classes and teacher.knows_classes and by_logits:
        what = "logits" if loss.reads in (None, "logits") else "features and logits"
        note = f"without labels, the teacher's {what} are all that teaches"
        return replace(teacher, notes=(*teacher.notes, note)), classes
    if loss.reads in (None, "logits"):
        raise UserError(
            f"--unlabelled: the teacher {teacher.name} has no logits, and the loss {distill.loss.name} "
            "reads nothing else: take one that reads features, such as srd"
        )
    note = f"the teacher {teacher.name} teaches by its features alone: the student gets no head"
    return replace(teacher, knows_classes=False, notes=(note,)), 0


def comparing(
    task: DistillationTask, inputs: Inputs, precision: Precision, log: RunLog
) -> Callable[[Callable[[], bool]], Likeness]:
    """The evaluation of a student that learns without labels."""

    def evaluate(stop: Callable[[], bool]) -> Likeness:
        loss: Any = task.distillation_loss
        assert task.teach is not None
        with evaluating(task.model):
            return measure_likeness(
                task.student,
                task.teach,
                inputs,
                loss=loss,
                logits=task.soft or task.loss.reads == "logits",
                temperature=task.distill.temperature,
                precision=precision,
                log=log,
                stop=stop,
            )

    return evaluate
