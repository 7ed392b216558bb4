"""Evaluate a checkpoint: what the command line does without --train_student or --train_teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from srd.config.fields import Config, full_name
from srd.data.inputs import Inputs, inputs_of
from srd.device import Precision, choose_device
from srd.distributed import processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, measure_on
from srd.evaluation.published import published_line
from srd.files.locate import locate
from srd.files.released import in_ckpts
from srd.files.weights import load_into
from srd.models.frozen import Normalization
from srd.models.students import open_student
from srd.models.teacher import PAPER_TEACHER, check_knows_classes, open_teacher
from srd.run.log import RunLog


def evaluate_checkpoint(config: Config, checkpoint: str | None) -> Accuracy:
    """Measure a released or own checkpoint on the validation images, and print what came out.

    Args:
        checkpoint: a file; None looks for the released one in `ckpts/`.

    Raises:
        UserError: no such file, or it does not fit the model, the classes or the image size.
    """
    if config.data.unlabelled:
        raise UserError(
            "an evaluation counts classes, and these pictures have no labels: what the run measured is in "
            "its result.json; of labelled ones, give --data-path and --set data.unlabelled=false"
        )
    path = checkpoint or released_checkpoint(full_name(config.model.name))
    locate(path)  # told before data are looked for
    device = choose_device(config.device)
    with processes.joined(device):
        inputs = inputs_of(config, training=False, pin_memory=device.type == "cuda")
        log = RunLog(None, processes.is_main())
        try:
            return _evaluate(config, path, inputs, device, log)
        finally:
            log.close()


def _evaluate(
    config: Config, path: str | Path, inputs: Inputs, device: torch.device, log: RunLog
) -> Accuracy:
    precision = Precision.choose(config.amp, device)
    size, classes = config.model.image_size, inputs.num_classes
    what = f"{full_name(config.model.name)} with {classes} classes at {size}x{size}"
    student = open_student(
        config.model.name, num_classes=classes, image_size=size, in_chans=config.model.in_chans
    ).model
    if extras := load_into(student, path, what):
        log.info(
            f"{path}: {len(extras)} tensors beside the student, not needed: {', '.join(extras)}"
        )
    student.to(device, precision.dtype).eval()
    log.lines(inputs.notes)
    if config.teacher.evaluate:
        given = Normalization(config.data.mean, config.data.std)
        teacher = open_teacher(
            config.teacher, num_classes=classes, image_size=size, given=given, precision=precision
        )
        check_knows_classes(teacher, inputs.num_classes, "an evaluation of the teacher")
        accuracy = measure_on(inputs, teacher.classify, precision, log, "evaluating the teacher")
        log.info(f"teacher {teacher.name}  {accuracy}")
        if teacher.name == PAPER_TEACHER:
            _print_published(config, "regnety_160", accuracy, classes)
    accuracy = measure_on(inputs, student, precision, log, "evaluating")
    if processes.is_main():
        print(f"{what}, {path}: {accuracy}")
        _print_published(config, full_name(config.model.name), accuracy, classes)
    return accuracy


def _print_published(config: Config, name: str, accuracy: Accuracy, num_classes: int) -> None:
    data = config.data
    settings = f"data.eval_interpolation {data.eval_interpolation}, data.eval_crop {data.eval_crop}"
    line = published_line(name, accuracy, num_classes=num_classes, settings=settings)
    if line is not None and processes.is_main():
        print(line)


def released_checkpoint(model: str) -> Path:
    """The released weights of `model` in `ckpts/`; a UserError says where they were looked for."""
    names = (f"{model}/ckpt_epoch_299.pth", "ckpt_epoch_299.pth")
    path = in_ckpts(*names)
    if path is None:
        raise UserError(
            f"nothing to evaluate: no ckpts/{names[0]} nor ckpts/{names[1]}; put the released weights "
            "there (see ckpts/README.md), give --checkpoint FILE, or train with --train_student"
        )
    return path
