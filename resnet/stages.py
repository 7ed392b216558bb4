"""The stages of a recipe: where each begins and ends, what it trains on, all tried before the first."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy
from typing import Any, NamedTuple

from resnet import box as boxes
from resnet.evaluation import (
    test_loader,
)
from resnet.inputs import TrainInput, train_input
from resnet.models import Models
from resnet.recipe import Recipe
from resnet.rehearsal import check_datasets, check_schedule, rehearse, rehearse_schedule
from resnet.sections import Training, stages
from srd.device import Precision
from srd.training.parts import Span


def spans(training: list[Training], recipe: Recipe) -> list[Span]:
    """Where each stage begins and ends, in epochs and updates of the whole run."""
    each: list[Span] = []
    epoch = updates = 0
    for stage in training:
        each.append(Span(epoch, epoch + stage.num_epochs, updates))
        epoch += stage.num_epochs
        loader = stage.train_data_loader
        steps = len(recipe.config["datasets"][loader.dataset_id]) // loader.kwargs.batch_size
        updates += stage.num_epochs * steps
    return each


def try_stages(
    recipe: Recipe,
    models: Models,
    training: list[Training],
    precision: Precision,
    factor: int,
) -> None:
    """Build and rehearse every stage on copies, so that a later one cannot fail after days."""
    copies = models._replace(
        student=deepcopy(models.student), teacher=deepcopy(models.teacher)
    )  # a wrapper may take a data set's transform away
    datasets = {name: copy(dataset) for name, dataset in recipe.config["datasets"].items()}
    box = boxes.make_box(recipe, copies, precision.device, factor, datasets)
    for number, stage in enumerate(training):
        if number:
            boxes.advance(box, number, seed=0)
        open_stage(box, recipe, copies, precision, stage=number, epochs=stage.num_epochs, seed=0)


class StageInput(NamedTuple):
    """What a stage trains on, and how many classes the student knows."""

    inputs: TrainInput
    classes: int


def open_stage(
    box: Any,
    recipe: Recipe,
    models: Models,
    precision: Precision,
    *,
    stage: int,
    epochs: int,
    seed: int,
) -> StageInput:
    """The data of the stage that the box is at; everything fits, or a UserError says what does not."""
    boxes.trained_network(box).to(precision.dtype)
    if not recipe.run.global_statistics:
        boxes.use_local_statistics(box)
    section = stages(recipe.config["train"])[stage]["train_data_loader"]
    inputs = train_input(box, recipe, section, seed, precision.device.type == "cuda")
    classes = check_datasets(
        models.student,
        models.student_name,
        precision,
        train=box.train_data_loader.dataset,
        val=box.val_data_loader.dataset,
        test=test_loader(recipe).dataset,
    )
    boxes.check_train_images(box, inputs.images)
    rehearse(box, models, inputs, precision, channels_last=recipe.run.channels_last)
    check_schedule(box, recipe.run.evaluate_every)
    rehearse_schedule(box, epochs, len(inputs.batches))
    return StageInput(inputs, classes)


def stage_of(state: Mapping[str, Any] | None, spans: list[Span]) -> int:
    """The stage in which a checkpoint was made; the first from the start."""
    epoch = state["position"]["epoch"] if state is not None else 0
    return max(number for number, span in enumerate(spans) if span.first <= epoch)
