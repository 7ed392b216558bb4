"""Train a student or a teacher: from a configuration to a run's folder. It wires; others work.

The one place that sees the whole configuration: every room gets its own section from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from srd.config.fields import NOT_RECIPE, Config, Distill, Plan, default_name
from srd.config.layers import Layer, to_mapping
from srd.config.reading import read_config
from srd.data.batches import check_shares
from srd.data.guard import check_classes
from srd.data.inputs import Inputs, inputs_of
from srd.device import Precision, choose_device, set_determinism
from srd.distributed import processes
from srd.errors import Stopped, UserError
from srd.method.losses import LOSSES, NoSettings
from srd.models.students import find
from srd.models.teacher import LoadedTeacher
from srd.run.extension import Pace
from srd.run.folder import RunFolder
from srd.run.trackers import check_tracker
from srd.training.build import AnyTeacher, Trained, identify, make_loop, make_task, prepare, start
from srd.training.cached_teacher import load_teacher, teaching
from srd.training.comparison import Comparison, ValidationImages
from srd.training.memory import fit_training
from srd.training.optim import check_optimizer
from srd.training.preflight import preflight
from srd.training.run_cache import RunCache, lacking, open_cache
from srd.training.session import open_session
from srd.training.teaching import (
    check_student,
    check_teacher,
    measure_teacher,
    teacher_recipe,
    with_known_teacher,
    with_teacher_of,
)
from srd.training.without_labels import open_unlabelled_teacher


def train_one_of_several(
    config: Config, trained: Trained = "student", notes: Sequence[str] = ()
) -> None:
    """`train`, where another run comes after it: a signal that was too late for this one stops here."""
    if (code := train(config, trained, notes)) is not None:
        raise Stopped("the run is done, and the next one is not begun", code)


def train(config: Config, trained: Trained = "student", notes: Sequence[str] = ()) -> int | None:
    """Train a student or a teacher, from its start or from where it was, and leave its folder.

    Args:
        notes: how the configuration came about, for the run's log.

    Returns:
        The exit code of a signal that came when there was nothing left to stop; None without one.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    check_tracker(config.track)
    device = choose_device(config.device)
    with processes.joined(device):
        processes.check_same([trained, to_mapping(config)])
        check_shares(config.train.batch_size, processes.world_size())
        check_optimizer(config.optim)
        find(config.teacher.name if trained == "teacher" else config.model.name, role=trained)
        precision = Precision.choose(config.amp, device)
        set_determinism(config.deterministic)
        inputs = inputs_of(config, training=True, pin_memory=device.type == "cuda")
        check_classes(inputs.class_names)
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
            track=config.track,
        ) as session:
            if session is None:
                return None
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
            if config.cache.path and cache is None:
                session.log.info(f"the loss {distill.loss.name} reads no teacher: no cache is used")
            assert inputs.train_batches is not None
            batches = config.train.epochs * len(inputs.train_batches)
            prepare(task, teacher, config, precision, batches=batches)
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
            late = processes.ranks_where(loop.signals.asked())
        return loop.signals.code if late else None


def pace_of(plan: Plan, inputs: Inputs) -> Pace:
    """How long the run is."""
    assert inputs.train_batches is not None
    return Pace(plan.epochs, len(inputs.train_batches), plan.batch_size)


def upgraded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings, an earlier version's too, as today's."""
    return to_mapping(read_config([Layer("the checkpoint", settings)]))


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
        train_one_of_several(recipe, "teacher", notes)
    return with_teacher_of(recipe, config)
