"""Train a student or a teacher: from a configuration to a run's folder. It wires; others work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from deit.student import create_student
from srd.config.fields import NOT_RECIPE, Config, Teacher, check
from srd.config.layers import Layer, build, read_yaml, to_mapping
from srd.data.batches import check_shares
from srd.data.inputs import Inputs, measure, open_inputs
from srd.data.views import INIT, seeded
from srd.device import Precision, choose_device, device_name, set_determinism
from srd.distributed import batch_norm, processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy
from srd.files.released import REPOSITORY
from srd.models.teacher import LoadedTeacher, feature_width, open_teacher
from srd.models.timm_models import create_classifier
from srd.run.folder import RunFolder
from srd.run.log import RunLog, clock
from srd.run.provenance import provenance
from srd.run.resume import open_run
from srd.training.task import ClassifierTask, StudentTask, Task
from srd.training.trainer import Trainer

Trained = Literal["student", "teacher"]


def train(config: Config, trained: Trained) -> None:
    """Train a student or a teacher, from its start or from where it was, and leave its folder.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    device = choose_device(config.device)
    with processes.processes(device):
        _train(config, trained, device)


def _train(config: Config, trained: Trained, device: torch.device) -> None:
    processes.check_same([trained, to_mapping(config)])
    check_shares(config.train.batch_size, processes.world_size())  # before the teacher is trained
    precision = Precision.choose(config.amp, device)
    set_determinism(config.deterministic)
    inputs = open_inputs(config, training=True, pin_memory=device.type == "cuda")
    teacher = None
    if trained == "student" and config.distill.method != "none":
        config = with_trained_teacher(config)
        teacher = open_teacher(config, inputs.num_classes, precision)
    task = make_task(config, trained, inputs.num_classes, teacher).to(device)
    identity = {
        "trained": trained,
        "model": config.teacher.name if trained == "teacher" else f"deit_{config.model.name}",
        "num_classes": inputs.num_classes,
        "train_images": inputs.train_images,
        "teacher_sha256": teacher.sha256 if teacher else None,
        "class_names": inputs.class_names,
    }
    assert config.name is not None
    folder = RunFolder(config.output, config.name)
    settings = to_mapping(config)
    opened = open_run(folder, config.resume, settings, {"identity": identity}, NOT_RECIPE)
    if opened.state is not None and (done := folder.read_result()) is not None:
        folder.release()
        if processes.is_main():
            scores = f"acc1 {done['acc1']:.2f}, best {done['best_acc1']:.2f}"
            print(f"already finished: {scores}; see {folder.path}")
        return
    log = RunLog(folder.path, processes.is_main(), opened.updates)
    try:
        log.tell(opened.notes)
        announce(log, inputs, task, teacher, device, precision)
        network = prepare(task, teacher, config, precision)
        trainer = Trainer(
            config, task, network, teacher.model if teacher else None, inputs, folder, log,
            precision, identity,
        )  # fmt: skip
        if opened.state is not None:
            trainer.load_state(opened.state)
        elif teacher is not None and config.teacher.evaluate:
            found = measure(teacher.classify, inputs, precision, log, "evaluating the teacher")
            log.info(f"teacher {teacher.name}  {found}")
            log.row("eval", {"model": "teacher", "epoch": 0, "step": 0, **found.row()}, board={})
        accuracy = trainer.fit()
        if processes.is_main():
            finish(config, trainer, accuracy, teacher)
    finally:
        log.close()
        folder.release()


def with_trained_teacher(config: Config) -> Config:
    """`config` with its teacher's checkpoint filled in where `teacher.recipe` says how to train it.

    The teacher is trained once, with the student's data, device and output folder.
    """
    if config.teacher.checkpoint or not config.teacher.recipe:
        return config
    path = Path(config.teacher.recipe)
    path = path if path.exists() else REPOSITORY / path
    here = {
        "output": config.output,
        "device": config.device,
        "data": {"path": config.data.path, "workers": config.data.workers},
    }
    recipe = build(Config, [Layer(str(path), read_yaml(path)), Layer("", here)])
    check(recipe)
    if recipe.name is None:
        raise UserError(f"{path} trains a teacher for others: it needs a `name`")
    folder = RunFolder(recipe.output, recipe.name)
    if folder.read_result() is None:
        if processes.is_main():
            print(f"first the teacher, once: {path} into {folder.path}")
        train(recipe, "teacher")
    teacher: Teacher = replace(
        config.teacher,
        name=recipe.teacher.name,
        checkpoint=str(folder.best if recipe.train.keep_best else folder.last),
    )
    return replace(config, teacher=teacher)


def make_task(
    config: Config, trained: Trained, num_classes: int, teacher: LoadedTeacher | None
) -> Task:
    """What is trained, its weights drawn from the seed alone."""
    size, smoothing = config.model.image_size, config.augment.label_smoothing
    with seeded(INIT, config.seed):
        if trained == "teacher":
            model = create_classifier(config.teacher.name, num_classes, size)
            return ClassifierTask(model, smoothing)
        student = create_student(config.model.name, num_classes, size, config.model.drop_path)
        width = feature_width(teacher.model, size) if teacher else None
        everywhere = config.train.global_statistics
        return StudentTask(student, config.distill, width, smoothing, everywhere)


def prepare(
    task: Task, teacher: LoadedTeacher | None, config: Config, precision: Precision
) -> nn.Module:
    """Global batch norms, types, memory layout, compilation; returns what the engine calls."""
    if config.train.global_statistics:
        batch_norm.use_global_batch_norm(task.model)
    task.to(precision.dtype)
    networks: list[Any] = [task.model, *([teacher.model] if teacher else [])]
    for network in networks:
        if precision.device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if config.compile:
            network.compile()
    return processes.data_parallel(task, precision.device)


def announce(
    log: RunLog,
    inputs: Inputs,
    task: Task,
    teacher: LoadedTeacher | None,
    device: torch.device,
    precision: Precision,
) -> None:
    """What is about to run, in two lines."""
    count = sum(p.numel() for p in task.model.parameters())
    log.info(
        f"{type(task.model).__name__}, {count / 1e6:.2f} M parameters, {inputs.num_classes} classes; "
        f"{inputs.train_images} training and {inputs.val_images} validation images; "
        f"{device}, {precision}, {processes.world_size()} process(es)"
    )
    if teacher is not None:
        digest = f", SHA-256 {teacher.sha256}" if teacher.sha256 else ""
        log.info(f"teacher {teacher.name} from {teacher.source}{digest}")


def finish(
    config: Config, trainer: Trainer, accuracy: Accuracy, teacher: LoadedTeacher | None
) -> None:
    """`result.json`, and the closing line."""
    position, folder, skipped = trainer.position, trainer.folder, trainer.inputs.broken.names
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
            "skipped_files": len(skipped),
            "seconds": round(position.seconds, 1),
            "seed": config.seed,
            "device": device_name(trainer.device),
            "precision": str(trainer.precision),
            "processes": processes.world_size(),
            **provenance(),
        }
    )
    trainer.log.info(
        f"done in {clock(position.seconds)}: acc1 {accuracy.acc1:.2f}, best {position.best_acc1:.2f} in "
        f"epoch {position.best_epoch + 1}; everything is in {folder.path}"
    )
