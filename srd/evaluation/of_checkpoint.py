"""Evaluate a checkpoint: what the command line does without --train_student or --train_teacher."""

from __future__ import annotations

from pathlib import Path

import torch

from deit.student import create_student
from srd.config.fields import Config
from srd.data.inputs import measure, open_inputs
from srd.device import Precision, choose_device
from srd.distributed import processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy
from srd.evaluation.published import beside
from srd.files.checkpoint import explain_mismatch, load_parts
from srd.files.released import in_ckpts, released_as
from srd.models.teacher import PAPER_TEACHER, open_teacher
from srd.run.log import RunLog


def evaluate_checkpoint(config: Config, checkpoint: str | None) -> Accuracy:
    """Measure a released or own checkpoint on the validation images, and print what came out.

    Args:
        checkpoint: a file; None looks for the released one in `ckpts/`.

    Raises:
        UserError: no such file, or it does not fit the model, the classes or the image size.
    """
    path = Path(checkpoint).expanduser() if checkpoint else released_checkpoint(config.model.name)
    device = choose_device(config.device)
    with processes.processes(device):
        return _evaluate(config, path, device)


def _evaluate(config: Config, path: Path, device: torch.device) -> Accuracy:
    precision = Precision.choose(config.amp, device)
    inputs = open_inputs(config, training=False, pin_memory=device.type == "cuda")
    size = config.model.image_size
    what = f"DeiT-{config.model.name} with {inputs.num_classes} classes at {size}x{size}"
    weights, extras = load_parts(path)
    student = create_student(config.model.name, inputs.num_classes, size)
    explain_mismatch(student.state_dict(), weights, path, what)
    student.load_state_dict(weights)
    student.to(device, precision.dtype).eval()
    log = RunLog(None, processes.is_main())
    try:
        if extras:
            log.info(
                f"{path}: {len(extras)} tensors beside the student, not needed: {', '.join(extras)}"
            )
        if config.teacher.evaluate:
            teacher = open_teacher(config, inputs.num_classes, precision)
            found = measure(teacher.classify, inputs, precision, log, "evaluating the teacher")
            log.info(f"teacher {teacher.name}  {found}")
            if teacher.name == PAPER_TEACHER:
                _tell_published(config, "regnety_160", found, inputs.num_classes)
        accuracy = measure(student, inputs, precision, log)
    finally:
        log.close()
    if processes.is_main():
        print(f"{what}, {path}: {accuracy}")
        _tell_published(config, f"deit_{config.model.name}", accuracy, inputs.num_classes)
    return accuracy


def _tell_published(config: Config, name: str, found: Accuracy, num_classes: int) -> None:
    """The published value beside ours, where the data may be ImageNet."""
    one = released_as(name)
    if one is not None and num_classes == 1000 and processes.is_main():
        data = config.data
        settings = (
            f"data.eval_interpolation {data.eval_interpolation}, data.eval_crop {data.eval_crop}"
        )
        print(beside(found, one, settings))


def released_checkpoint(model: str) -> Path:
    """The released weights of `model` in `ckpts/`; a UserError says where they were looked for."""
    names = (f"deit_{model}/ckpt_epoch_299.pth", "ckpt_epoch_299.pth")
    found = in_ckpts(*names)
    if found is None:
        raise UserError(
            f"nothing to evaluate: no ckpts/{names[0]} nor ckpts/{names[1]}; put the released weights "
            "there (see ckpts/README.md), give --checkpoint FILE, or train with --train_student"
        )
    return found
