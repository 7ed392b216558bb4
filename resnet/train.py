"""Runs a recipe: torchdistill's box as a task of the session that both halves share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from resnet import box as boxes
from resnet.cached import open_cache, teaching
from resnet.evaluation import (
    compare_teacher,
    eval_loader,
    measure_model,
    test,
    test_only,
    validation_images,
)
from resnet.inputs import TrainInput, split_items
from resnet.models import Models, load_models, student_section
from resnet.options import Options
from resnet.recipe import NOT_RECIPE, Recipe, read_recipe
from resnet.rehearsal import check_num_classes
from resnet.sections import check_sections
from resnet.stages import StageInput, open_stage, spans, stage_of, try_stages
from resnet.trainer import BoxSchedule, BoxTask, Items, compile_networks, to_device
from srd.config.fields import Plan, Saving
from srd.data.guard import check_targets
from srd.data.views import INIT, seeded
from srd.device import Precision, bfloat16_note, choose_device, set_determinism
from srd.distributed import batch_norm, processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, Measured
from srd.evaluation.predictions import Recorder
from srd.files.checkpoint import save_state
from srd.files.weights import load_into
from srd.run.extension import Pace
from srd.run.folder import RunFolder
from srd.run.trackers import check_tracker
from srd.training.cached_teacher import At
from srd.training.comparison import Comparison
from srd.training.loop import Loop
from srd.training.parts import Span, TrainData
from srd.training.probe import ProjectorProbe
from srd.training.session import Identity, Session, open_session


def run(options: Options) -> None:
    """Train and test, or only test, what a configuration says.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    check_tracker(options.track)
    device = choose_device(options.device)
    with processes.joined(device):
        recipe = read_recipe(
            options.config, options.data_path, options.trust_config, options.output
        )
        training = check_sections(recipe.config, options.config)
        processes.check_same([recipe.settings, options.seed])
        if training[1:] and cache_of(recipe, options):
            raise UserError(
                "run.teacher_cache: each stage asks its teacher for other layers, of other batches, and "
                "a cache holds one answer for each image: leave it out of a run in stages"
            )
        precision = Precision.choose(recipe.run.amp, device)
        set_determinism(recipe.run.deterministic)
        check_num_classes(recipe)
        with seeded(INIT, options.seed):
            cached = cache_of(recipe, options) is not None
            models = load_models(recipe, device, testing=options.test_only, cached=cached)
            prepare(models, recipe, precision)
            if options.test_only:
                test_only(recipe, options, models, precision)
                return
            factor = processes.world_size() if options.adjust_lr else 1
            if training[1:]:
                try_stages(recipe, models, training, precision, factor)
            box = boxes.make_box(recipe, models, device, factor)
        train(recipe, options, models, box, precision, spans(training, recipe))


def cache_of(recipe: Recipe, options: Options) -> str | None:
    """The folder of the teacher cache; None where nothing is trained, or there is none."""
    return None if options.test_only else options.teacher_cache or recipe.run.teacher_cache


def prepare(models: Models, recipe: Recipe, precision: Precision) -> None:
    """Global batch norms, types and memory layout of the networks.

    Raises:
        UserError: `run.teacher_bf16` has no effect.
    """
    if recipe.run.global_statistics:
        batch_norm.use_global_batch_norm(models.student)
    for model in (models.student, models.teacher):
        if model is not None:
            model.to(precision.dtype)
            if recipe.run.channels_last:
                model.to(memory_format=torch.channels_last)
    if recipe.run.teacher_bf16:
        boxes.compute_in_bfloat16(models.teacher, recipe.run.amp)


def train(
    recipe: Recipe,
    options: Options,
    models: Models,
    box: Any,
    precision: Precision,
    spans: list[Span],
) -> None:
    """Train the box's student, test the best one, and leave a run's folder."""
    if options.extend and len(spans) > 1:
        raise UserError("--extend: a run in stages cannot be extended")
    seed, epochs = options.seed, [span.end - span.first for span in spans]
    stage = open_stage(box, recipe, models, precision, stage=0, epochs=epochs[0], seed=seed)
    measured = models._replace(teacher=None) if models.teacher_lacks else models
    cache = None
    if path := cache_of(recipe, options):
        cache = open_cache(path, recipe, seed, models, box, stage.inputs, precision, epochs[0])
    identity = Identity(
        model=models.student_name,
        teacher=models.teacher_name,
        train_images=stage.inputs.images,
        class_names=stage.inputs.class_names,
        seed=seed,
        lr_factor=box.lr_factor,
    )
    batch_size = stage.inputs.batches.batch_size
    pace = Pace(epochs[0], len(stage.inputs.batches), batch_size)
    plan = Plan(epochs=sum(epochs), batch_size=batch_size, **saving(recipe))
    with open_session(
        RunFolder(options.output, options.run_name),
        identity,
        settings=recipe.settings,
        not_recipe=NOT_RECIPE,
        resume=options.resume,
        config_text=recipe.text,
        copy_to=Path(options.run_log).expanduser() if options.run_log else None,
        pace=pace if options.extend else None,
        slim=options.slim,
        track=options.track,
    ) as session:
        if session is None:
            return
        announce(session, recipe, options, models, stage.inputs, precision)
        items = box.val_data_loader.dataset
        pictures = validation_images(items, stage.inputs.class_names, stage.classes)
        comparison = Comparison(session.folder, pictures, anew=session.state is None)

        def measure_teacher() -> None:
            compare_teacher(measured, box.val_data_loader, precision, options.seed, comparison)

        first, loop = stage_of(session.state, spans), None
        for number, span in enumerate(spans):
            if number:
                boxes.advance(box, number, seed)
                if number < first:
                    continue
                stage = open_stage(
                    box, recipe, models, precision, stage=number, epochs=epochs[number], seed=seed
                )
                session.log.info(f"stage {number + 1} of {len(spans)}")
            elif first:
                continue
            with teaching(box, cache, models, precision, session.log.info) as at:
                before, loop = (
                    loop,
                    make_loop(
                        session, plan, recipe, options, models, box, stage, precision, span,
                        comparison, at,
                    ),
                )  # fmt: skip
                if before is None:
                    session.start(loop, measure_teacher=measure_teacher)
                else:
                    loop.follow(before)
                accuracy = loop.fit()
            if number + 1 < len(spans):
                box.post_epoch_process(metrics=accuracy.score)
        assert loop is not None
        comparison.add_examples()
        processes.barrier()  # the main process may still be writing the best student
        load_into(models.student, session.folder.student, f"the student {models.student_name}")
        accuracy = test(recipe, options, measured, precision, session.log)
        if (copy_to := student_section(recipe).get("dst_ckpt")) and processes.is_main():
            save_state(Path(copy_to).expanduser(), {"model": models.student.state_dict()})
        about = {"tested": "the best student"}
        session.finish(loop, accuracy, plan=plan, precision=precision, about=about)


def saving(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's `run` says of evaluations, checkpoints, logs and the moving average."""
    names = [*(field.name for field in dataclasses.fields(Saving)), "ema_decay", "ema_warmup"]
    return {name: getattr(recipe.run, name) for name in names}


def announce(
    session: Session,
    recipe: Recipe,
    options: Options,
    models: Models,
    inputs: TrainInput,
    precision: Precision,
) -> None:
    """What is about to run."""
    if options.log_config:
        session.log.info(recipe.text)
    teacher = f"{models.teacher_name} teaches " if models.teacher else ""
    session.log.info(
        f"{teacher}{models.student_name}; {inputs.images} training images; {precision.device}, "
        f"{precision}, {processes.world_size()} process(es)"
    )
    if recipe.run.teacher_bf16:
        session.log.info(bfloat16_note(precision.device))


def make_loop(
    session: Session,
    plan: Plan,
    recipe: Recipe,
    options: Options,
    models: Models,
    box: Any,
    stage: StageInput,
    precision: Precision,
    span: Span,
    comparison: Comparison,
    at: At,
) -> Loop:
    """The loop of a stage with everything that it needs.

    Args:
        at: is told the place of every batch before it is taught.
    """
    inputs, classes = stage
    batches = len(inputs.batches) * (span.end - span.first)
    compile_networks(box, recipe.run, precision.device, batches)
    task = BoxTask(box, models, precision)
    schedule = BoxSchedule(box) if box.lr_scheduler is not None else None

    def ready(items: Any, place: int) -> Items:
        at(place)
        epoch, step = divmod(place, len(inputs.batches))
        if boxes.counts_images(box):
            boxes.give_keys(box, inputs.batches.keys(span.first + epoch, step))
        batch = split_items(items)
        check_targets(batch[1], classes)
        if span.first + place == 0:
            session.log.pictures(batch[0], 0)
        return to_device(batch, precision, channels_last=recipe.run.channels_last)

    val = eval_loader(box.val_data_loader, precision, options.seed)

    def evaluate(stop: Any) -> Accuracy:
        recorder = Recorder(comparison.images.count, precision.device)
        accuracy = measure_model(
            models.student, val, precision, session.log, "evaluating", stop, recorder
        )
        return comparison.compared(accuracy, recorder)

    def end_epoch(accuracy: Measured | None) -> None:
        box.post_epoch_process(metrics=accuracy.score if accuracy else None)

    return Loop(
        task=task,
        optimizer=box.optimizer,
        schedule=schedule,
        plan=plan,
        seed=options.seed,
        clip_norm=box.max_grad_norm,
        data=TrainData(
            loader=inputs.loader,
            batches=inputs.batches,
            prepare=ready,
        ),
        evaluate=evaluate,
        precision=precision,
        folder=session.folder,
        log=session.log,
        settings=session.saved_with,
        start_epoch=lambda epoch: boxes.start_epoch(box, models, epoch),
        end_epoch=end_epoch,
        backward=task.backward,
        move_schedule=schedule.move if schedule else lambda epochs, steps: None,
        span=span,
        probe=ProjectorProbe(getattr(boxes.trained_network(box), "distillation_loss", None)),
    )
