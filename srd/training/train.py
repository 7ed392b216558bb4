"""Train a student or a teacher: from a configuration to a run's folder. It wires; others work.

The one place that sees the whole configuration: every room gets its own section from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from srd.config.fields import (
    NOT_RECIPE,
    Config,
    Distill,
    Plan,
    default_name,
    full_name,
    read_config,
)
from srd.config.layers import Layer, to_mapping
from srd.data.augment import Mix
from srd.data.batches import check_shares
from srd.data.inputs import Inputs, open_inputs
from srd.data.loader import Batch, to_device
from srd.data.views import INIT, seeded
from srd.device import Precision, choose_device, set_determinism
from srd.distributed import processes
from srd.distributed.batch_norm import use_global_batch_norm
from srd.errors import UserError
from srd.method.losses import LOSSES, NoSettings, create_loss
from srd.models.initial import freeze_backbone, place_of, start_from
from srd.models.outputs import width
from srd.models.recorded import RecordedTeacher
from srd.models.students import open_student
from srd.models.teacher import LoadedTeacher
from srd.run.extension import Pace
from srd.run.folder import RunFolder
from srd.training.cached_teacher import At, arrange, load_teacher, teaching
from srd.training.comparison import Comparison, ValidationImages
from srd.training.loop import Loop
from srd.training.memory import fit_training
from srd.training.optim import check_optimizer, create_optimizer, create_schedule
from srd.training.parts import TrainData
from srd.training.preflight import preflight
from srd.training.probe import ProjectorProbe
from srd.training.run_cache import RunCache, lacking, open_cache
from srd.training.session import Identity, Session, open_session
from srd.training.task import DistillationTask
from srd.training.teaching import (
    check_student,
    check_teacher,
    measure_teacher,
    teacher_recipe,
    with_known_teacher,
)
from srd.training.without_labels import comparing, open_unlabelled_teacher

Trained = Literal["student", "teacher"]
AnyTeacher = LoadedTeacher | RecordedTeacher


def train(config: Config, trained: Trained = "student", notes: Sequence[str] = ()) -> None:
    """Train a student or a teacher, from its start or from where it was, and leave its folder.

    Args:
        notes: how the configuration came about, for the run's log.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    device = choose_device(config.device)
    with processes.joined(device):
        processes.check_same([trained, to_mapping(config)])
        check_shares(config.train.batch_size, processes.world_size())
        check_optimizer(config.optim)
        precision = Precision.choose(config.amp, device)
        set_determinism(config.deterministic)
        inputs = open_training(config, pin_memory=device.type == "cuda")
        distill = Distill(loss=NoSettings()) if trained == "teacher" else config.distill
        teacher: AnyTeacher | None
        cache = None
        classes = inputs.num_classes
        if config.data.unlabelled:
            teacher, classes = open_unlabelled_teacher(config, distill, precision)
            if config.cache.path:
                cache = open_cache(config, inputs, precision).with_teacher(teacher, precision)
        else:
            config, teacher, cache = with_teacher(config, distill, inputs, precision)
        task = make_task(
            config, trained, distill, classes, teacher, precision, train_images=inputs.train_images
        )
        folder = RunFolder(config.output, config.name or default_name(config, trained))
        goes_on = config.resume == "auto" and folder.has_checkpoints()
        started = None if goes_on else start(config, trained, task, classes)
        memory = fit_training(
            task,
            teacher.model if isinstance(teacher, LoadedTeacher) else None,
            train=config.train,
            data=config.data,
            image_size=config.model.image_size,
            begins=not goes_on,
        )
        if memory.micro_batch and not goes_on:
            config = replace(config, train=replace(config.train, micro_batch=memory.micro_batch))
        with open_session(
            folder,
            identify(config, trained, inputs, teacher, classes),
            settings=to_mapping(replace(config, extend=False, slim=False)),
            not_recipe=NOT_RECIPE,
            resume=config.resume,
            upgrade=upgraded,
            pace=pace_of(config.train, inputs) if config.extend else None,
            slim=config.slim,
        ) as session:
            if session is None:
                return
            session.log.lines(
                preflight(
                    config.train,
                    config.optim,
                    config.output,
                    inputs=inputs,
                    name=session.identity.model,
                    model=task.model,
                    teacher=teacher,
                    precision=precision,
                    notes=notes,
                    memory=memory.line,
                )
            )
            if session.state is None and started:
                session.log.info(started)
            prepare(task, teacher, config, precision)
            comparison = Comparison(folder, ValidationImages.of(inputs), anew=session.state is None)
            with teaching(task, cache, config, inputs, precision, session.log.info) as at:
                loop = make_loop(session, config, task, inputs, precision, comparison, at)
                session.start(
                    loop,
                    measure_teacher=lambda: measure_teacher(
                        teacher, config.teacher, inputs, session, precision, comparison
                    ),
                )
                accuracy = loop.fit()
            comparison.add_examples()
            session.finish(
                loop,
                accuracy,
                plan=config.train,
                precision=precision,
                about={
                    "method": distill.loss.name if trained == "student" else None,
                    "teacher": teacher.name if teacher else None,
                    "dataset": config.data.dataset,
                    "skipped_files": len(inputs.broken.names),
                    "seed": config.seed,
                },
            )


def pace_of(plan: Plan, inputs: Inputs) -> Pace:
    """How long the run is."""
    assert inputs.train_batches is not None
    return Pace(plan.epochs, len(inputs.train_batches), plan.batch_size)


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings, an earlier version's too, as today's."""
    return to_mapping(read_config([Layer("the checkpoint", settings)]))


def open_training(config: Config, *, pin_memory: bool) -> Inputs:
    """The images to train on and to measure with."""
    return open_inputs(
        config.data,
        config.augment,
        image_size=config.model.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        training=True,
        pin_memory=pin_memory,
        repeat=config.cache.epochs,
    )


def with_teacher(
    config: Config, distill: Distill, inputs: Inputs, precision: Precision
) -> tuple[Config, AnyTeacher | None, RunCache | None]:
    """The teacher, if the loss reads one, and the cache of what it says.

    It is trained first where `teacher.recipe` says how, and not loaded where the cache has all.
    """
    loss = LOSSES[distill.loss.name]
    if not (loss.logits or loss.reads):
        return config, None, None
    cache = None
    if config.cache.path:
        known = with_known_teacher(config)
        cache = open_cache(known, inputs, precision)
        if cache.is_whole and not config.teacher.evaluate:
            recorded = cache.recorded()
            check_teacher(recorded, distill, inputs.class_names)
            return known, recorded, cache
    config = with_trained_teacher(config, inputs.num_classes)
    try:
        teacher = load_teacher(config, inputs.num_classes, precision)
    except UserError as error:
        raise lacking(cache, error) if cache and cache.there else error from None
    check_teacher(teacher, distill, inputs.class_names)
    return config, teacher, cache.with_teacher(teacher, precision) if cache else None


def with_trained_teacher(config: Config, num_classes: int) -> Config:
    """`config` with its teacher's checkpoint filled in where `teacher.recipe` says how to train it.

    The teacher is trained once, with the student's data, device and output folder.
    """
    if (found := teacher_recipe(config)) is None:
        return config
    recipe, notes = found
    folder = RunFolder(recipe.output, str(recipe.name))
    if folder.finished() is None:
        check_student(config, num_classes)
        if processes.is_main():
            print(f"first the teacher, once: {config.teacher.recipe} into {folder.path}")
        train(recipe, "teacher", notes)
    return with_known_teacher(config)


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
        )
        representation = None
        if teacher is not None and loss.reads is not None:
            representation = create_loss(
                distill.loss,
                student_dim=width(student, loss.reads, image_size=size, role="student"),
                teacher_dim=teacher.width(loss.reads, size),
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
    sizes = {"num_classes": num_classes, "image_size": config.model.image_size}
    return start_from(where, task.model, name, **sizes, role=trained)


def prepare(
    task: DistillationTask, teacher: AnyTeacher | None, config: Config, precision: Precision
) -> None:
    """Global batch norms, types, memory layout, compilation; and the task shared out."""
    if config.train.global_statistics:
        use_global_batch_norm(task.model)
    task.to(precision.dtype)
    arrange(task.student, config, precision)
    if isinstance(teacher, LoadedTeacher):
        arrange(teacher.model, config, precision)
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
        at: is told the number of every update, and which images it has.
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
        at(step, batch.keys)
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
