"""Accuracy in the ResNet half: of the student in training, and of student and teacher in a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from resnet.inputs import KeyedItems, as_batch, item_name, item_picture
from resnet.models import Models, student_section
from resnet.options import Options
from resnet.recipe import Recipe
from resnet.rehearsal import check_datasets
from srd.data.batches import EvalBatches
from srd.data.loader import Batch, BrokenFiles, make_loader
from srd.device import Precision
from srd.distributed import processes
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, evaluating, measure
from srd.evaluation.predictions import Recorder
from srd.evaluation.published import published_line
from srd.files.released import RELEASED, in_ckpts
from srd.files.weights import load_into
from srd.run.folder import RunFolder
from srd.run.log import RunLog
from srd.training.comparison import Comparison, ValidationImages
from srd.training.teaching import SAMPLE


def test_only(recipe: Recipe, options: Options, models: Models, precision: Precision) -> None:
    """Test the run's best student, else the file that the recipe names, else the model as built."""
    name, section = models.student_name, student_section(recipe)
    folder = RunFolder(options.output, options.run_name)
    released = [entry.file for entry in RELEASED if entry.file.startswith(f"{name}/")]
    places = [
        folder.student,
        *(Path(section[k]).expanduser() for k in ("dst_ckpt", "src_ckpt") if section.get(k)),
        *(Path("ckpts") / file for file in released),
    ]
    file = next((place for place in places if place.is_file()), None) or in_ckpts(*released)
    log = RunLog(None, processes.is_main())
    if file is not None:
        if extras := load_into(models.student, file, f"the student {name}"):
            log.info(f"{file}: {len(extras)} tensors beside it, not needed: {', '.join(extras)}")
    elif not (section.get("kwargs") or {}).get("weights"):
        raise UserError(f"nothing to test: no {' nor '.join(str(place) for place in places)}")
    check_datasets(models.student, name, precision, test=test_loader(recipe).dataset)
    log.info(f"student {name} from {file or 'its own weights'}")
    accuracy = test(recipe, options, models, precision, log)
    log_published(f"{name}_paper", models.student, accuracy, log, file)


def log_published(
    name: str, model: nn.Module, accuracy: Accuracy, log: RunLog, file: Path | None = None
) -> None:
    """The published value beside ours, for a plain ResNet of ImageNet's classes."""
    line = published_line(
        name,
        accuracy,
        num_classes=getattr(getattr(model, "fc", None), "out_features", 0),
        settings="the transforms of the configuration",
        file=file,
    )
    if line is not None:
        log.info(line)


def test(
    recipe: Recipe, options: Options, models: Models, precision: Precision, log: RunLog
) -> Accuracy:
    """Measure the student, and the teacher unless only the student was asked for, on the test set."""
    batches = eval_loader(test_loader(recipe), precision, options.seed)
    if models.teacher is not None and not options.student_only:
        accuracy = measure_model(models.teacher, batches, precision, log, "testing the teacher")
        log.info(f"teacher {models.teacher_name}  {accuracy}")
        log_published(str(models.teacher_name), models.teacher, accuracy, log)
    accuracy = measure_model(models.student, batches, precision, log, "testing the student")
    log.info(f"student {models.student_name}  {accuracy}")
    return accuracy


def test_loader(recipe: Recipe) -> Any:
    """The test data in torchdistill's form."""
    section = recipe.config["test"]["test_data_loader"]
    settings = section["kwargs"]
    return DataLoader(
        recipe.config["datasets"][section["dataset_id"]],
        int(settings["batch_size"]),
        num_workers=int(settings.get("num_workers", 0)),
    )


def eval_loader(theirs: Any, precision: Precision, seed: int, every: int = 1) -> DataLoader[Batch]:
    """The data of a torchdistill loader in order, each image (of each `every`) once over all processes."""
    items, here = theirs.dataset, (processes.rank(), processes.world_size())
    batches = EvalBatches(len(items), theirs.batch_size, *here, every=every)
    pin = precision.device.type == "cuda"
    return make_loader(KeyedItems(items, seed), batches, theirs.num_workers, pin, as_batch)


def compare_teacher(
    models: Models, theirs: Any, precision: Precision, seed: int, comparison: Comparison
) -> None:  # fmt: skip
    """Keep what the teacher says of at most 2,000 images, if it is of as many classes."""
    if models.teacher is None:
        return
    images = len(theirs.dataset)
    batches = eval_loader(theirs, precision, seed, every=-(-images // SAMPLE))
    recorder = Recorder(images, precision.device)
    with evaluating(models.teacher):
        for batch in batches:
            if len(batch.targets) == 0 or batch.keys is None:
                continue
            with torch.no_grad(), precision.autocast():
                logits = models.teacher(batch.images.to(precision.device, precision.dtype))
            if logits.shape[1] != len(comparison.images.class_names):
                return
            recorder.add(batch.keys[:, 1], batch.targets, logits)
    comparison.keep(teacher=recorder.told())


def validation_images(items: Any, class_names: list[str] | None, classes: int) -> ValidationImages:
    """What is known of the images that a run of a recipe is measured on."""
    return ValidationImages(
        count=len(items),
        class_names=class_names or [str(number) for number in range(classes)],
        name=partial(item_name, items),
        load=partial(item_picture, items),
    )


def measure_model(
    model: nn.Module,
    batches: DataLoader[Batch],
    precision: Precision,
    log: RunLog,
    label: str,
    stop: Callable[[], bool] = lambda: False,
    recorder: Recorder | None = None,
) -> Accuracy:
    """Accuracy of a plain classifier on all images of a loader."""
    with evaluating(model):
        return measure(
            model,
            batches,
            images=len(batches.dataset),  # type: ignore[arg-type]
            precision=precision,
            log=log,
            broken=BrokenFiles(skip=False, mend="replace the file"),
            label=label,
            stop=stop,
            recorder=recorder,
        )
