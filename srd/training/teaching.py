"""Whether a teacher can teach this data: of its classes, and better than chance."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from typing import Any

from srd.config.fields import Config, Distill, Teacher
from srd.config.layers import Layer, read_yaml
from srd.data.inputs import Inputs, sample
from srd.device import Precision
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, measure_on
from srd.evaluation.predictions import Recorder
from srd.files.locate import recipe_file
from srd.method.losses import LOSSES
from srd.models.outputs import width
from srd.models.recorded import RecordedTeacher
from srd.models.students import find, open_student
from srd.models.teacher import LoadedTeacher, check_knows_classes, full_teacher_name, weights_of
from srd.run.folder import RunFolder
from srd.training.comparison import Comparison
from srd.training.presets import configure_training
from srd.training.session import Session

NEAR_CHANCE = 1.5  # times the accuracy of guessing
SAMPLE = 2_000  # validation images that a teacher is measured on, unless all are asked for


def check_student(config: Config, num_classes: int) -> None:
    """Build the student once and drop it: mistakes in it are told before a teacher is trained."""
    loss, size = LOSSES[config.distill.loss.name], config.model.image_size
    reads = loss.reads not in (None, "logits")
    student = open_student(
        config.model.name, num_classes=num_classes, image_size=size, reads_features=reads,
        in_chans=config.model.in_chans,
    )  # fmt: skip
    if loss.reads is not None:
        width(student, loss.reads, image_size=size, role="student", positions=loss.positions)


def teacher_recipe(config: Config) -> tuple[Config, list[str]] | None:
    """How `teacher.recipe` trains the teacher, and notes; None where there is none, or a checkpoint.

    It is trained with the student's data, device and output folder.

    Raises:
        UserError: the recipe cannot be read, or has no name.
    """
    if config.teacher.checkpoint or not config.teacher.recipe:
        return None
    path = recipe_file(config.teacher.recipe)
    data: dict[str, Any] = {"path": config.data.path, "workers": config.data.workers}
    data["val_fraction"] = config.data.val_fraction  # it must not see the student's
    if config.data.select_fraction is not None:  # nor be chosen on what the student is tested on
        data["select_fraction"] = config.data.select_fraction
    here = {"output": config.output, "device": config.device, "data": data}
    settings = read_yaml(path)
    layers = [Layer(str(path), settings), Layer("", here)]
    recipe, notes = configure_training(layers, [], "teacher")
    if settings.get("name") is None:
        raise UserError(f"{path} trains a teacher for others: it needs a `name`")
    return recipe, notes


def look_for_teacher(config: Config) -> None:
    """Raise a UserError for a teacher whose name is unknown, or whose file or recipe is not there."""
    if teacher_recipe(config) is None:
        find(full_teacher_name(config.teacher.name), role="teacher")
        weights_of(config.teacher)


def with_known_teacher(config: Config) -> Config:
    """`config` with its teacher filled in where `teacher.recipe` says how to train it."""
    found = teacher_recipe(config)
    return with_teacher_of(found[0], config) if found else config


def with_teacher_of(recipe: Config, config: Config) -> Config:
    """`config` with the teacher that `recipe` has trained, or will have."""
    folder = RunFolder(recipe.output, str(recipe.name))
    file = folder.best if recipe.train.keep_best else folder.last
    checkpoint = str(file if file.is_file() else folder.path)  # of a slim run
    teacher = replace(config.teacher, name=recipe.teacher.name, checkpoint=checkpoint)
    return replace(config, teacher=teacher)


def check_teacher(
    teacher: LoadedTeacher | RecordedTeacher, distill: Distill, class_names: list[str]
) -> None:
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
    teacher: LoadedTeacher | RecordedTeacher | None,
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
    if not isinstance(teacher, LoadedTeacher) or settings.evaluate is False:
        return None
    if not (teacher.knows_classes and inputs.num_classes):
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
