"""What a training consists of, from a configuration: the task, the loop, who the run is."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from srd.config.fields import (
    Config,
    Distill,
    full_name,
)
from srd.data.augment import Mix
from srd.data.inputs import Inputs
from srd.data.loader import Batch, to_device
from srd.data.views import INIT, seeded
from srd.device import Precision
from srd.distributed.batch_norm import use_global_batch_norm
from srd.method.losses import LOSSES, create_loss
from srd.models.initial import freeze_backbone, place_of, start_from
from srd.models.outputs import width
from srd.models.recorded import RecordedTeacher
from srd.models.students import open_student
from srd.models.teacher import LoadedTeacher
from srd.training.arrange import arrange_student, arrange_teacher
from srd.training.cached_teacher import At
from srd.training.comparison import Comparison
from srd.training.loop import Loop
from srd.training.optim import create_optimizer, create_schedule
from srd.training.parts import TrainData
from srd.training.probe import ProjectorProbe
from srd.training.session import Identity, Session
from srd.training.task import DistillationTask
from srd.training.without_labels import comparing

Trained = Literal["student", "teacher"]


AnyTeacher = LoadedTeacher | RecordedTeacher


def make_task(
    config: Config,
    trained: Trained,
    distill: Distill,
    num_classes: int,
    teacher: AnyTeacher | None,
    precision: Precision,
    *,
    train_images: int = 0,
) -> DistillationTask:
    """What is trained, its weights drawn from the seed alone; on its device."""
    size, loss = config.model.image_size, LOSSES[distill.loss.name]
    with seeded(INIT, config.seed):
        student = open_student(
            config.teacher.name if trained == "teacher" else config.model.name,
            num_classes=num_classes,
            image_size=size,
            drop_path=config.model.drop_path,
            role=trained,
            reads_features=loss.reads not in (None, "logits"),
            in_chans=config.model.in_chans,
        )
        representation = None
        if teacher is not None and loss.reads is not None:
            representation = create_loss(
                distill.loss,
                student_dim=width(
                    student, loss.reads, image_size=size, role="student", positions=loss.positions
                ),
                teacher_dim=teacher.width(loss.reads, size, loss.positions),
                across_ranks=config.train.global_statistics,
                train_images=train_images,
            )
    if config.model.freeze_backbone:
        freeze_backbone(student.model, f"the student {config.model.name}")
    return DistillationTask(
        student,
        representation,
        distill=distill,
        teach=teacher if isinstance(teacher, LoadedTeacher) else None,
        smoothing=config.augment.label_smoothing,
        precision=precision,
        knows_classes=teacher is None or teacher.knows_classes,
        labelled=not config.data.unlabelled,
    ).to(precision.device)


def start(config: Config, trained: Trained, task: DistillationTask, num_classes: int) -> str | None:
    """Load the weights that a training starts from; what was done, None where it starts from none."""
    name = config.teacher.name if trained == "teacher" else config.model.name
    if (where := place_of(config.model.init, name)) is None:
        return None
    model = config.model
    sizes = {"num_classes": num_classes, "image_size": model.image_size, "in_chans": model.in_chans}
    return start_from(where, task.model, name, **sizes, role=trained)


def prepare(
    task: DistillationTask,
    teacher: AnyTeacher | None,
    config: Config,
    precision: Precision,
    *,
    batches: int = 0,
) -> None:
    """Global batch norms, types, memory layout, compilation; and the task shared out.

    Args:
        batches: of the whole run.
    """
    if config.train.global_statistics:
        use_global_batch_norm(task.model)
    task.to(precision.dtype)
    arrange_student(task.student, config, precision)
    if isinstance(teacher, LoadedTeacher):
        arrange_teacher(teacher, config, precision, batches=batches)
    task.share_out(config.train.micro_batch)


def make_loop(
    session: Session,
    config: Config,
    task: DistillationTask,
    inputs: Inputs,
    precision: Precision,
    comparison: Comparison,
    at: At,
) -> Loop:
    """The loop with everything that it needs.

    Args:
        at: is told the place of every batch before it is taught.
    """
    assert inputs.train is not None and inputs.train_batches is not None
    plan, optim = config.train, config.optim
    mix = Mix(
        config.augment,
        num_classes=max(1, inputs.num_classes),
        seed=config.seed,
        repeat=len(inputs.train_batches) * (config.cache.epochs or 0),
    )

    def ready(batch: Batch, step: int) -> tuple[Tensor, ...]:
        at(step)
        for name in inputs.broken.check(batch):
            session.log.info(f"skipped {name}")
        mixed = mix(*to_device(batch, precision.device, precision.dtype), step)
        if step == 0:
            session.log.pictures(mixed[0], step, config.data.mean, config.data.std)
        if batch.keys is None or "keys" not in task.loss.needs:
            return mixed
        return (*mixed, batch.keys)

    def start_epoch(_: int) -> None:
        task.train()
        if config.model.freeze_backbone:
            task.model.eval()

    unlabelled = config.data.unlabelled
    evaluate = (
        comparing(task, inputs, precision, session.log)
        if unlabelled
        else comparison.evaluation(inputs, task.model, precision, session.log)
    )
    optimizer = create_optimizer(task, optim, batch_size=plan.batch_size, device=precision.device)
    schedule = create_schedule(
        optimizer,
        optim,
        batch_size=plan.batch_size,
        steps_per_epoch=len(inputs.train_batches),
        epochs=plan.epochs,
    )
    return Loop(
        task=task,
        optimizer=optimizer,
        schedule=schedule,
        plan=plan,
        seed=config.seed,
        clip_norm=optim.clip_norm,
        data=TrainData(loader=inputs.train, batches=inputs.train_batches, prepare=ready),
        evaluate=evaluate,
        precision=precision,
        folder=session.folder,
        log=session.log,
        settings=session.saved_with,
        start_epoch=start_epoch,
        move_schedule=lambda epochs, steps: schedule.step_update(max(0, steps - 1)),
        probe=ProjectorProbe(task.distillation_loss),
    )


def identify(
    config: Config,
    trained: Trained,
    inputs: Inputs,
    teacher: AnyTeacher | None,
    classes: int,
) -> Identity:
    """What the run's checkpoints must agree on; without labels, the classes are the teacher's."""
    of_teacher = (teacher.class_names or []) if teacher and classes else []
    return Identity(
        model=config.teacher.name if trained == "teacher" else full_name(config.model.name),
        trained=trained,
        train_images=inputs.train_images,
        num_classes=classes,
        class_names=of_teacher if config.data.unlabelled else inputs.class_names,
        teacher_sha256=teacher.sha256 if teacher else None,
    )
