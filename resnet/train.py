"""Runs a recipe: torchdistill's box inside the loop that both halves share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from resnet import box as boxes
from resnet.evaluation import test, test_only
from resnet.inputs import train_input
from resnet.models import Models, load_models
from resnet.recipe import NOT_RECIPE, Options, Recipe, read_recipe
from resnet.trainer import BoxLoop
from srd.data.views import INIT, seeded
from srd.device import Precision, choose_device, device_name, set_determinism
from srd.distributed import batch_norm, processes
from srd.evaluation.accuracy import Accuracy
from srd.files.checkpoint import load_weights, save_state
from srd.run.folder import RunFolder
from srd.run.log import RunLog, clock
from srd.run.provenance import provenance
from srd.run.resume import open_run


def run(options: Options) -> None:
    """Train and test, or only test, what a configuration says.

    Raises:
        UserError: wrong input. Stopped: a signal came, and the run is saved. RunFailed: a loss is
            not finite, or a file cannot be written.
    """
    device = choose_device(options.device)
    with processes.processes(device):
        recipe = read_recipe(options.config, options.data_path, options.trust_config)
        processes.check_same([recipe.settings, options.seed])
        precision = Precision.choose(recipe.run.amp, device)
        set_determinism(recipe.run.deterministic)
        with seeded(INIT, options.seed):
            models = load_models(recipe, device)
            prepare(models, recipe, precision)
            if options.test_only:
                test_only(recipe, options, models, precision)
            else:
                box = boxes.make_box(
                    recipe, models, device, processes.world_size() if options.adjust_lr else 1
                )
        if not options.test_only:
            _train(recipe, options, models, box, precision)


def prepare(models: Models, recipe: Recipe, precision: Precision) -> None:
    """Global batch norms, types and memory layout of the networks."""
    if recipe.run.global_statistics:
        batch_norm.use_global_batch_norm(models.student)
    for model in (models.student, models.teacher):
        if model is not None:
            model.to(precision.dtype)
            if recipe.run.channels_last:
                model.to(memory_format=torch.channels_last)


def _train(
    recipe: Recipe, options: Options, models: Models, box: Any, precision: Precision
) -> None:
    boxes.trained_network(box).to(precision.dtype)
    if not recipe.run.global_statistics:
        boxes.use_local_statistics(box)
    inputs = train_input(box, recipe, options.seed, precision.device.type == "cuda")
    identity = {
        "model": models.student_name,
        "teacher": models.teacher_name,
        "train_images": inputs.images,
        "seed": options.seed,
        "lr_factor": box.lr_factor,
        "class_names": inputs.class_names,
    }
    folder = RunFolder(options.output, options.name or Path(options.config).stem)
    opened = open_run(
        folder, options.resume, recipe.settings, {"identity": identity}, NOT_RECIPE, recipe.text
    )
    if opened.state is not None and (done := folder.read_result()) is not None:
        folder.release()
        if processes.is_main():
            print(f"already finished: acc1 {done['acc1']:.2f}; see {folder.path}")
        return
    copy_to = Path(options.run_log).expanduser() if options.run_log else None
    log = RunLog(folder.path, processes.is_main(), opened.updates, copy_to)
    try:
        log.tell(opened.notes)
        if options.log_config:
            log.info(recipe.text)
        teacher = f"{models.teacher_name} teaches " if models.teacher else ""
        log.info(
            f"{teacher}{models.student_name}; {inputs.images} training images; {precision.device}, "
            f"{precision}, {processes.world_size()} process(es)"
        )
        loop = BoxLoop(recipe, options, models, box, folder, log, precision, inputs, identity)
        if opened.state is not None:
            loop.load_state(opened.state)
        loop.fit()
        processes.barrier()  # the main process may still be writing the best student
        models.student.load_state_dict(load_weights(folder.student))
        accuracy = test(recipe, options, models, precision, log)
        if processes.is_main():
            _finish(loop, accuracy)
    finally:
        log.close()
        folder.release()


def _finish(loop: BoxLoop, accuracy: Accuracy) -> None:
    """The student where the recipe wants it, `result.json`, and the closing line."""
    position, folder, models = loop.position, loop.folder, loop.models
    section = loop.recipe.config["models"]
    section = section.get("student_model", section.get("model"))
    if wanted := section.get("dst_ckpt"):
        save_state(Path(wanted).expanduser(), {"model": models.student.state_dict()})
    folder.write_result(
        {
            **loop.identity,
            "tested": "the best student",
            **accuracy.row(),
            "best_acc1": position.best_acc1,
            "best_epoch": position.best_epoch,
            "epochs": loop.plan.epochs,
            "updates": position.updates,
            "images_trained": position.updates * loop.plan.batch_size,
            "seconds": round(position.seconds, 1),
            "device": device_name(loop.device),
            "precision": str(loop.precision),
            "processes": processes.world_size(),
            **provenance(),
        }
    )
    loop.log.info(
        f"done in {clock(position.seconds)}: the best student (epoch {position.best_epoch + 1}) has "
        f"acc1 {accuracy.acc1:.2f} on the test images; everything is in {folder.path}"
    )
