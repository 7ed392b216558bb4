"""Runs a recipe: torchdistill's box as a task of the session that both halves share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from resnet import box as boxes
from resnet.evaluation import (
    compare_teacher,
    eval_loader,
    measure_model,
    test,
    test_loader,
    test_only,
    validation_images,
)
from resnet.inputs import TrainInput, split_items, train_input
from resnet.models import Models, load_models, student_section
from resnet.options import Options
from resnet.recipe import NOT_RECIPE, Recipe, read_recipe
from resnet.rehearsal import check_datasets, check_schedule, rehearse, rehearse_schedule
from resnet.sections import check_sections
from resnet.trainer import BoxSchedule, BoxTask, Items, to_device
from srd.config.fields import Plan, Saving
from srd.data.guard import check_targets
from srd.data.views import INIT, seeded
from srd.device import Precision, choose_device, set_determinism
from srd.distributed import batch_norm, processes
from srd.evaluation.accuracy import Accuracy
from srd.evaluation.predictions import Recorder
from srd.files.checkpoint import save_state
from srd.files.weights import load_into
from srd.run.folder import RunFolder
from srd.training.comparison import Comparison
from srd.training.loop import Loop, TrainData
from srd.training.probe import ProjectorProbe
from srd.training.session import Identity, Session, open_session


def run(options: Options) -> None:
    """Train and test, or only test, what a configuration says.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    device = choose_device(options.device)
    with processes.joined(device):
        recipe = read_recipe(
            options.config, options.data_path, options.trust_config, options.output
        )
        sections = check_sections(recipe.config, options.config)
        processes.check_same([recipe.settings, options.seed])
        precision = Precision.choose(recipe.run.amp, device)
        set_determinism(recipe.run.deterministic)
        with seeded(INIT, options.seed):
            models = load_models(recipe, device, testing=options.test_only)
            prepare(models, recipe, precision)
            if options.test_only:
                test_only(recipe, options, models, precision)
                return
            factor = processes.world_size() if options.adjust_lr else 1
            box = boxes.make_box(recipe, models, device, factor)
        train(recipe, options, models, box, precision, sections.train.num_epochs)


def prepare(models: Models, recipe: Recipe, precision: Precision) -> None:
    """Global batch norms, types and memory layout of the networks."""
    if recipe.run.global_statistics:
        batch_norm.use_global_batch_norm(models.student)
    for model in (models.student, models.teacher):
        if model is not None:
            model.to(precision.dtype)
            if recipe.run.channels_last:
                model.to(memory_format=torch.channels_last)


def train(
    recipe: Recipe,
    options: Options,
    models: Models,
    box: Any,
    precision: Precision,
    epochs: int,
) -> None:
    """Train the box's student, test the best one, and leave a run's folder."""
    boxes.trained_network(box).to(precision.dtype)
    if not recipe.run.global_statistics:
        boxes.use_local_statistics(box)
    inputs = train_input(box, recipe, options.seed, precision.device.type == "cuda")
    classes = check_datasets(
        models.student,
        models.student_name,
        precision,
        train=box.train_data_loader.dataset,
        val=box.val_data_loader.dataset,
        test=test_loader(recipe).dataset,
    )
    rehearse(box, models, inputs, precision, channels_last=recipe.run.channels_last)
    check_schedule(box, recipe.run.evaluate_every)
    rehearse_schedule(box, epochs, len(inputs.batches))
    identity = Identity(
        model=models.student_name,
        teacher=models.teacher_name,
        train_images=inputs.images,
        class_names=inputs.class_names,
        seed=options.seed,
        lr_factor=box.lr_factor,
    )
    plan = Plan(epochs=epochs, batch_size=inputs.batches.batch_size, **saving(recipe))
    with open_session(
        RunFolder(options.output, options.run_name),
        identity,
        settings=recipe.settings,
        not_recipe=NOT_RECIPE,
        resume=options.resume,
        config_text=recipe.text,
        copy_to=Path(options.run_log).expanduser() if options.run_log else None,
    ) as session:
        if session is None:
            return
        announce(session, recipe, options, models, inputs, precision)
        items = box.val_data_loader.dataset
        pictures = validation_images(items, inputs.class_names, classes)
        comparison = Comparison(session.folder, pictures, anew=session.state is None)
        loop = make_loop(
            session, plan, recipe, options, models, box, inputs, precision, classes, comparison
        )

        def measure_teacher() -> None:
            compare_teacher(models, box.val_data_loader, precision, options.seed, comparison)

        session.start(loop, measure_teacher=measure_teacher)
        loop.fit()
        comparison.add_examples()
        processes.barrier()  # the main process may still be writing the best student
        load_into(models.student, session.folder.student, f"the student {models.student_name}")
        accuracy = test(recipe, options, models, precision, session.log)
        if (copy := student_section(recipe).get("dst_ckpt")) and processes.is_main():
            save_state(Path(copy).expanduser(), {"model": models.student.state_dict()})
        about = {"tested": "the best student"}
        session.finish(loop, accuracy, plan=plan, precision=precision, about=about)


def saving(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's `run` says of evaluations, checkpoints and logs."""
    return {field.name: getattr(recipe.run, field.name) for field in dataclasses.fields(Saving)}


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


def make_loop(
    session: Session,
    plan: Plan,
    recipe: Recipe,
    options: Options,
    models: Models,
    box: Any,
    inputs: TrainInput,
    precision: Precision,
    classes: int,
    comparison: Comparison,
) -> Loop:
    """The loop with everything that it needs."""
    task = BoxTask(box, models, precision)

    def ready(items: Any, step: int) -> Items:
        batch = split_items(items)
        check_targets(batch[1], classes)
        if step == 0:
            session.log.pictures(batch[0], step)
        return to_device(batch, precision, channels_last=recipe.run.channels_last)

    val = eval_loader(box.val_data_loader, precision, options.seed)

    def evaluate(stop: Any) -> Accuracy:
        recorder = Recorder(comparison.images.count, precision.device)
        accuracy = measure_model(
            models.student, val, precision, session.log, "evaluating", stop, recorder
        )
        return comparison.compared(accuracy, recorder)

    def end_epoch(accuracy: Accuracy | None) -> None:
        box.post_epoch_process(metrics=accuracy.acc1 if accuracy else None)

    return Loop(
        task=task,
        optimizer=box.optimizer,
        schedule=BoxSchedule(box) if box.lr_scheduler is not None else None,
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
        probe=ProjectorProbe(getattr(boxes.trained_network(box), "distillation_loss", None)),
    )
