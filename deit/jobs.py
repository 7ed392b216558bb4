"""The two jobs of the command line: train, and evaluate a checkpoint. They wire; others work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deit.config import NOT_RECIPE, Config
from deit.engine import Trainer
from deit.inputs import Inputs, open_inputs
from deit.student import create_student
from deit.task import ClassifierTask, StudentTask, Task, split_weights
from deit.teacher import LoadedTeacher, create_classifier, feature_width, in_ckpts, load_teacher
from srd import dist
from srd.checkpoint import explain_mismatch, load_weights
from srd.config import to_mapping
from srd.device import Precision, choose_device, set_determinism
from srd.errors import UserError
from srd.evaluate import Accuracy, evaluate
from srd.log import RunLog, clock
from srd.run import RunFolder, load_resume, provenance
from srd.teacher import FrozenTeacher, Normalization
from srd.views import INIT, seeded

Trained = Literal["student", "teacher"]


def train(config: Config, trained: Trained) -> None:
    """Train a student or a teacher, from its start or from where it was, and leave its folder."""
    device = choose_device(config.device)
    precision = Precision.choose(config.amp, device)
    set_determinism(config.deterministic)
    inputs = open_inputs(config, training=True, pin_memory=device.type == "cuda")
    teacher = _open_teacher(config, inputs, device) if trained == "student" else None
    task = _make_task(config, trained, inputs.num_classes, teacher).to(device)
    identity = {
        "trained": trained,
        "model": _model_name(config, trained),
        "num_classes": inputs.num_classes,
        "train_images": inputs.train_images,
        "teacher_sha256": teacher.sha256 if teacher else None,
    }
    folder, state = _open_folder(config, identity)
    if state is not None and (done := folder.read_result()) is not None:
        print(
            f"already finished: acc1 {done['acc1']:.2f} (best {done['best_acc1']:.2f}); see {folder.path}"
        )
        return
    log = RunLog(folder.path, dist.is_main(), state["position"]["updates"] if state else 0)
    try:
        _announce(config, log, inputs, task, teacher, device, precision)
        trainer = Trainer(
            config,
            task,
            _prepare(task, teacher, config, device),
            teacher.model if teacher else None,
            inputs,
            folder,
            log,
            device,
            precision,
            identity,
        )
        if state is not None:
            trainer.load_state(state)
            at = trainer.position
            log.info(
                f"resuming at epoch {at.epoch + 1}, step {at.step} ({at.updates} updates made)"
            )
        elif teacher is not None and config.teacher.evaluate:
            _evaluate_teacher(teacher, inputs, device, precision, log)
        accuracy = trainer.fit()
        if dist.is_main():
            _finish(config, trainer, accuracy, teacher, precision)
    finally:
        log.close()


def evaluate_checkpoint(config: Config, checkpoint: str | None) -> Accuracy:
    """Measure a released or own checkpoint on the validation images, and print what came out."""
    path = Path(checkpoint).expanduser() if checkpoint else _released_checkpoint(config)
    device = choose_device(config.device)
    precision = Precision.choose(config.amp, device)
    inputs = open_inputs(config, training=False, pin_memory=device.type == "cuda")
    weights, projector = split_weights(load_weights(path))
    student = create_student(config.model.name, inputs.num_classes, config.model.image_size)
    size = config.model.image_size
    what = f"DeiT-{config.model.name} with {inputs.num_classes} classes at {size}x{size}"
    explain_mismatch(student.state_dict(), weights, path, what)
    student.load_state_dict(weights)
    student.to(device).eval()
    log = RunLog(None, dist.is_main())
    try:
        if projector:
            log.info(
                f"{path}: beside the student, a projector of {len(projector)} tensors (not needed here)"
            )
        if config.teacher.evaluate:
            _evaluate_teacher(_open_teacher(config, inputs, device), inputs, device, precision, log)
        log.start_bar("evaluating", inputs.val_images, unit="image")
        accuracy = evaluate(
            student, inputs.val, device, precision, inputs.broken,
            lambda images: log.advance(images * dist.world_size()),
        )  # fmt: skip
        log.end_bar()
        _tell_skipped(inputs, log)
    finally:
        log.close()
    if dist.is_main():
        print(f"{what}, {path}: {accuracy}")
    return accuracy


def _released_checkpoint(config: Config) -> Path:
    names = (f"deit_{config.model.name}/ckpt_epoch_299.pth", "ckpt_epoch_299.pth")
    found = in_ckpts(*names)
    if found is None:
        raise UserError(
            f"nothing to evaluate: no ckpts/{names[0]} nor ckpts/{names[1]}; put the released "
            "weights there (see ckpts/README.md), give --checkpoint FILE, or train with --train_student"
        )
    return found


def _open_teacher(config: Config, inputs: Inputs, device: torch.device) -> LoadedTeacher | None:
    if config.distill.method == "none":
        return None
    given = Normalization(config.data.mean, config.data.std)
    teacher = load_teacher(config.teacher, inputs.num_classes, config.model.image_size, given)
    teacher.model.to(device)
    return teacher


def _make_task(
    config: Config, trained: Trained, num_classes: int, teacher: LoadedTeacher | None
) -> Task:
    size, smoothing = config.model.image_size, config.augment.label_smoothing
    with seeded(INIT, config.seed):
        if trained == "teacher":
            return ClassifierTask(
                create_classifier(config.teacher.name, num_classes, size), smoothing
            )
        student = create_student(config.model.name, num_classes, size, config.model.drop_path)
        width = feature_width(teacher.model, size) if teacher else None
        return StudentTask(student, config.distill, width, smoothing)


def _prepare(
    task: Task, teacher: LoadedTeacher | None, config: Config, device: torch.device
) -> nn.Module:
    """Memory layout and compilation; returns what the engine calls."""
    networks: list[nn.Module] = [task.model, *([teacher.model] if teacher else [])]
    for network in networks:
        if device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if config.compile:
            network.compile()
    return task


def _open_folder(
    config: Config, identity: dict[str, Any]
) -> tuple[RunFolder, dict[str, Any] | None]:
    """The run's folder, ready, and the state to go on from (None: a new run)."""
    folder = RunFolder(config.output, config.name or "run")
    recipe = {**to_mapping(config), "identity": identity}
    damaged: list[Path] = []
    if config.resume == "auto":
        path, damaged = folder.find_resume()
        if path is None and damaged:
            raise UserError(
                f"{damaged[0]} is damaged and there is no other checkpoint: --resume none starts anew"
            )
    elif config.resume == "none":
        path = None
        if dist.is_main() and (aside := folder.set_aside()):
            print(f"the earlier run is now {aside}")
    else:
        path = Path(config.resume).expanduser()
    state = load_resume(path, recipe, NOT_RECIPE) if path else None
    if dist.is_main():
        folder.prepare()
        folder.write_config(to_mapping(config))
        for file in damaged:
            print(f"{file} is damaged: passed over for {path}")
    return folder, state


def _model_name(config: Config, trained: Trained) -> str:
    return config.teacher.name if trained == "teacher" else f"deit_{config.model.name}"


def _announce(
    config: Config,
    log: RunLog,
    inputs: Inputs,
    task: Task,
    teacher: LoadedTeacher | None,
    device: torch.device,
    precision: Precision,
) -> None:
    count = sum(p.numel() for p in task.model.parameters())
    log.info(
        f"{type(task.model).__name__}, {count / 1e6:.2f} M parameters, {inputs.num_classes} classes, "
        f"{inputs.train_images} training and {inputs.val_images} validation images; "
        f"{device}, {precision}, {dist.world_size()} process(es)"
    )
    if teacher is not None:
        log.info(
            f"teacher {teacher.name} from {teacher.source}, SHA-256 {teacher.sha256 or 'not a file'}"
        )


def _evaluate_teacher(
    teacher: LoadedTeacher | None,
    inputs: Inputs,
    device: torch.device,
    precision: Precision,
    log: RunLog,
) -> None:
    if teacher is None:
        return
    log.start_bar("evaluating the teacher", inputs.val_images, unit="image")
    model: FrozenTeacher = teacher.model
    accuracy = evaluate(
        lambda images: model(images).logits, inputs.val, device, precision, inputs.broken,
        lambda images: log.advance(images * dist.world_size()),
    )  # fmt: skip
    log.end_bar()
    log.info(f"teacher {teacher.name}  {accuracy}")
    log.row("eval", {"model": "teacher", "epoch": 0, "step": 0, **accuracy.row()}, board={})


def _tell_skipped(inputs: Inputs, log: RunLog) -> None:
    if inputs.broken.names:
        log.info(f"skipped {len(inputs.broken.names)} files that could not be read")


def _finish(
    config: Config,
    trainer: Trainer,
    accuracy: Accuracy,
    teacher: LoadedTeacher | None,
    precision: Precision,
) -> None:
    """`result.json`, and the closing line."""
    position, folder, inputs = trainer.position, trainer.folder, trainer.inputs
    _tell_skipped(inputs, trainer.log)
    folder.write_result(
        {
            **trainer.identity,
            "method": config.distill.method if trainer.identity["trained"] == "student" else None,
            "teacher": teacher.name if teacher else None,
            "dataset": config.data.dataset,
            **accuracy.row(),
            "best_acc1": position.best_acc1,
            "best_epoch": position.best_epoch,
            "epochs": config.train.epochs,
            "updates": position.updates,
            "images_trained": position.updates * config.train.batch_size,
            "skipped_files": len(inputs.broken.names),
            "seconds": round(position.seconds, 1),
            "seed": config.seed,
            "device": _device_name(trainer.device),
            "precision": str(precision),
            "processes": dist.world_size(),
            **provenance(),
        }
    )
    trainer.log.info(
        f"done in {clock(position.seconds)}: acc1 {accuracy.acc1:.2f} (best {position.best_acc1:.2f} in "
        f"epoch {position.best_epoch + 1}); everything is in {folder.path}"
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
