"""A recipe tried on two pictures before anything is written: data, networks and losses fit together.

torchdistill checks little of what it is given, and torch complains where it meets it. So what a first
step does is done here once, without gradients, and everything that it moved is put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from resnet import box as boxes
from resnet.explain import step_explained
from resnet.inputs import TrainInput, Unreadable, inner_dataset, load_item, split_items
from resnet.models import Models, student_section
from resnet.recipe import Recipe
from resnet.trainer import BoxTask, to_device
from srd.data.guard import Labelled, check_head, check_splits, check_targets
from srd.data.views import STEP, seeded
from srd.device import Precision
from srd.errors import UserError, explained
from srd.evaluation.accuracy import evaluating
from srd.strict import MOST_FLOAT


def check_datasets(student: nn.Module, name: str, precision: Precision, **datasets: Any) -> int:
    """The number of classes that a student knows.

    Args:
        name: the student's.
        datasets: by the name of their split; all are measured with it.

    Raises:
        UserError: a split without images, a label out of range, classes that differ between splits,
            or that are not as many as the student's; a picture that cannot be read; a student that
            cannot read it.
    """
    splits = [labelled(split, items) for split, items in datasets.items()]
    check_splits(splits)
    known = 0
    for split, items in zip(splits, datasets.values(), strict=True):
        image, target = first_item(split.name, items)
        image = image[0] if image.ndim == 4 else image  # SSKD's data set turns each picture
        with explained(f"the student {name} cannot read the pictures of {split.name}"):
            batch = image[None].to(precision.device, precision.dtype)
            with torch.no_grad(), evaluating(student), precision.autocast():
                logits = student(batch)
            if not isinstance(logits, Tensor) or logits.ndim != 2:
                raise UserError(f"the student {name} is no classifier: it gives no logits (B, C)")
        known = logits.shape[1]
        check_head(f"the student {name} (num_classes)", known, split.classes)
        with explained(f"the labels of {split.name}"):
            check_targets(torch.as_tensor([target]), known)
    return known


def check_num_classes(recipe: Recipe) -> None:
    """Raise a UserError for a student of more classes than any data set has, before it is built."""
    section, datasets = student_section(recipe), recipe.config["datasets"]
    told = ((section or {}).get("kwargs") or {}).get("num_classes")
    every = [list(labelled(name, items).classes or ()) for name, items in datasets.items()]
    if type(told) is int and every and all(every) and told > max(map(len, every)):
        check_head(f"the student {section['key']} (num_classes)", told, max(every, key=len))


def first_item(split: str, items: Any) -> tuple[Tensor, Any]:
    """The first picture of a data set, as its transforms make it, and its label."""
    item = load_item(items, 0, 0, seed=0)
    if isinstance(item, Unreadable):
        raise UserError(f"cannot read {item.name}")
    if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[0], Tensor):
        raise UserError(
            f"the data set of {split} gives no (tensor, class): its transforms must end in a tensor, "
            "such as torchvision's ToTensor makes"
        )
    return item[0], item[1]


def labelled(split: str, items: Any) -> Labelled:
    """What a data set of torchvision's kind says of itself."""
    inner = inner_dataset(items)
    classes, targets = getattr(inner, "classes", None), getattr(inner, "targets", None)
    with explained(f"the data set of {split}"):
        numbers = None if targets is None else np.asarray(targets)
        if numbers is not None and (numbers.ndim != 1 or numbers.dtype.kind not in "iu"):
            numbers = None
        names = list(classes) if isinstance(classes, (list, tuple)) else None
        return Labelled(split, len(items), names, numbers)


def rehearse(
    box: Any, models: Models, inputs: TrainInput, precision: Precision, *, channels_last: bool
) -> None:
    """Make the losses of a first step from two pictures.

    Raises:
        UserError: whatever torchdistill, or what the recipe names, raises on the way.
    """
    modules = [boxes.trained_network(box), models.teacher, getattr(box, "teacher_model", None)]
    modules += [criterion for criterion, _ in getattr(box.criterion, "term_dict", {}).values()]
    with step_explained(), unmoved(modules), torch.no_grad():
        keys = [(0, 0), (0, 1)]
        batch = inputs.loader.collate_fn([inputs.items[key] for key in keys])
        boxes.start_epoch(box, models, 0)
        if boxes.counts_images(box):
            boxes.give_keys(box, keys)
        BoxTask(box, models, precision).losses(
            to_device(split_items(batch), precision, channels_last=channels_last), seed=0
        )


@contextmanager
def unmoved(modules: list[nn.Module | None]) -> Iterator[None]:
    """Inside, running statistics and random numbers may move; outside, nothing has."""
    buffers = {id(b): b for m in modules if m is not None for b in m.buffers()}.values()
    saved = [buffer.clone() for buffer in buffers]
    try:
        with seeded(STEP, 0):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)


MOST_STEPS = 10_000  # of a schedule that moves with the updates


def rehearse_schedule(box: Any, epochs: int, updates: int) -> None:
    """Move the schedule through the whole run, and put it back.

    Args:
        updates: of an epoch.

    Raises:
        UserError: it fails on the way, or a learning rate is no number, or below 0.
    """
    schedule = box.lr_scheduler
    if schedule is None:
        return
    if not all(type(epoch) is int for epoch in getattr(schedule, "milestones", ())):
        raise UserError("train.scheduler: milestones are whole numbers")
    steps = epochs * updates // box.scheduling_step if box.scheduling_step > 0 else epochs
    plateau = isinstance(schedule, ReduceLROnPlateau)
    groups, state = box.optimizer.param_groups, deepcopy(schedule.state_dict())
    before = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    try:
        with explained("train.scheduler"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no optimizer has moved yet
            for _ in range(min(steps, MOST_STEPS)):
                schedule.step(*([0.0] if plateau else []))
                if not all(0 <= group["lr"] <= MOST_FLOAT for group in groups):
                    rate = groups[0]["lr"]
                    raise UserError(f"train.scheduler: it leads to a learning rate of {rate:.3g}")
    finally:
        schedule.load_state_dict(state)
        for group, values in zip(groups, before, strict=True):
            group.update(values)


def check_schedule(box: Any, evaluate_every: int) -> None:
    """Raise a UserError for a schedule that wants an accuracy after every epoch, and gets none."""
    each = (box.scheduling_step or 0) <= 0 and evaluate_every == 1
    if isinstance(box.lr_scheduler, ReduceLROnPlateau) and not each:
        raise UserError(
            "train.scheduler: ReduceLROnPlateau moves by the accuracy of every epoch: leave "
            "run.evaluate_every at 1, and scheduling_step out"
        )
