"""Whether a teacher can teach this data: of its classes, and better than chance."""

from __future__ import annotations

from itertools import zip_longest

from srd.config.fields import Distill, Teacher
from srd.data.inputs import Inputs, sample
from srd.device import Precision
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, measure_on
from srd.evaluation.predictions import Recorder
from srd.method.losses import LOSSES
from srd.models.teacher import LoadedTeacher, check_knows_classes
from srd.training.comparison import Comparison
from srd.training.session import Session

NEAR_CHANCE = 1.5  # times the accuracy of guessing
SAMPLE = 2_000  # validation images that a teacher is measured on, unless all are asked for


def check_teacher(teacher: LoadedTeacher, distill: Distill, class_names: list[str]) -> None:
    """Raise a UserError for a teacher of other classes than the data's that is read by its logits.

    Args:
        class_names: of the data, in order.
    """
    if LOSSES[distill.loss.name].reads in (None, "logits"):
        check_knows_classes(teacher, len(class_names), f"the loss {distill.loss.name}")
    names = teacher.class_names
    if teacher.knows_classes and names is not None and names != class_names:
        pairs = zip_longest(names, class_names, fillvalue="none")
        own, other = next((own, other) for own, other in pairs if own != other)
        raise UserError(
            f"the teacher {teacher.name} was trained on other classes: its {own!r} is {other!r} in "
            "the data; train it on this data (--train_teacher)"
        )


def measure_teacher(
    teacher: LoadedTeacher | None,
    settings: Teacher,
    inputs: Inputs,
    session: Session,
    precision: Precision,
    comparison: Comparison,
) -> Accuracy | None:
    """The teacher's accuracy, told with a warning near chance; None where it is not recorded.

    Unless asked for, it is measured on a sample, for the log alone; a teacher of other classes is
    not measured.
    """
    measurable = teacher is not None and teacher.knows_classes and inputs.num_classes
    if teacher is None or not measurable or settings.evaluate is False:
        return None
    recorder = Recorder(inputs.val_images, precision.device)
    inputs = inputs if settings.evaluate else sample(inputs, SAMPLE)
    label = "evaluating the teacher"
    accuracy = measure_on(
        inputs, teacher.classify, precision, session.log, label, recorder=recorder
    )
    comparison.keep(teacher=recorder.told())
    session.log.info(f"teacher {teacher.name}  {accuracy}")
    chance = 100 / inputs.num_classes
    if accuracy.acc1 < NEAR_CHANCE * chance:
        session.log.info(
            f"warning: the teacher {teacher.name} is near chance ({chance:.3g} %) on these images: "
            "are its weights of this data, and its classes in the same order?"
        )
    return accuracy if settings.evaluate else None
