"""torchdistill's step: in our loop, and in torchdistill's own box."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from resnet import box as boxes
from resnet.models import Models, load_models
from resnet.recipe import Recipe, read_recipe
from resnet.sections import check_sections
from resnet.train import prepare
from resnet.trainer import BoxTask, compile_networks, to_device
from srd.bench.machine import matrix_rate, operations
from srd.bench.step import LONG, Step, fresh, one_behind, random_batch, repeated
from srd.bench.timing import Line, Sizes, in_turn
from srd.data.loader import Batch
from srd.device import Precision
from srd.training.update import update

RECIPE = """
dependencies: [resnet.extension]
datasets:
  &train digits/train: !import_call
    key: resnet.extension.Digits
    init: {{kwargs: {{split: train, transform: !import_call {{
      key: torchvision.transforms.ToTensor}}}}}}
models:
  teacher_model: {{key: {teacher}, kwargs: {{num_classes: 1000, weights: null}}}}
  student_model: {{key: {student}, kwargs: {{num_classes: 1000, weights: null}}}}
train:
  num_epochs: 1
  train_data_loader: &loader
    dataset_id: *train
    sampler: {{class_or_func: !import_get {{key: torch.utils.data.RandomSampler}}}}
    kwargs: {{batch_size: {batch}, num_workers: 0}}
  val_data_loader: *loader
  optimizer: {{key: SGD, kwargs: {{lr: 0.001, momentum: 0.9, weight_decay: 1.0e-4}}}}
  teacher:
    forward_proc: forward_batch_only
    forward_hook: {{output: [layer4]}}
    requires_grad: false
  student:
    auxiliary_model_wrapper:
      key: SimpleRecipeWrapper
      kwargs: {{layer: layer4, student_dim: 512, teacher_dim: 512}}
    forward_proc: forward_batch_only
    forward_hook: {{output: [model.layer4]}}
  criterion:
    key: WeightedSumLoss
    kwargs:
      sub_terms:
        ce:
          criterion: {{key: CrossEntropyLoss, kwargs: {{reduction: mean}}}}
          criterion_wrapper:
            key: SimpleLossWrapper
            kwargs:
              input: {{is_from_teacher: false, module_path: '.', io: output}}
              target: {{uses_label: true}}
          weight: 1.0
        srd:
          criterion: {{key: SimpleRecipeCriterion, kwargs: {{teacher_layer: layer4}}}}
          weight: 1.0
test: {{test_data_loader: *loader}}
run: {run}
"""


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """One update from a batch in memory."""
    batch = random_batch(sizes, device)
    kinds: dict[str, bool | None] = {"": None}
    if device.type == "cuda":
        kinds[", compiled"] = True
    with tempfile.TemporaryDirectory() as name:
        calls = {
            kind: our_step(*_task(Path(name), sizes, device, compiled), batch)
            for kind, compiled in kinds.items()
        }
        calls["reference"] = their_step(_plain_box(Path(name), sizes, device), batch, device)
        floor = _floor(_models(_recipe(Path(name), sizes, {}), torch.device("cpu")), sizes, device)
    rounds = {name: repeated(call, sizes.round_steps) for name, call in calls.items()}
    times = in_turn(rounds, seconds=sizes.seconds, device=device)
    reference = times.pop("reference")
    for kind, ours in times.items():
        yield Line(
            name=f"resnet: {sizes.resnets[1]} taught by {sizes.resnets[0]}{kind}",
            ours=ours,
            reference=reference,
            floor=floor,
            items=sizes.round_steps * sizes.batch_size,
            note="reference: torchdistill's own box in float32; floor: its operations at the matrix "
            "rate; compiled: the student too",
        )


def _floor(models: Models, sizes: Sizes, device: torch.device) -> float:
    """Seconds of a round at the rate of one large product of matrices."""
    small = torch.zeros(2, 3, sizes.image_size, sizes.image_size)
    assert models.teacher is not None
    count = operations(models.student, small, training=True)
    count += operations(models.teacher, small, training=False)
    precision = Precision.choose("auto", device)
    rate = matrix_rate(device, precision.mixed or precision.dtype)
    return count / 2 * sizes.round_steps * sizes.batch_size / rate


def our_step(task: BoxTask, precision: Precision, batch: Batch) -> Step:
    """The step that `srd.training.loop` makes with a box, from a batch in memory."""
    settle = one_behind()
    last = precision.device.type == "cuda"

    def step() -> None:
        here = fresh(batch)
        items = to_device((here.images, here.targets, {}), precision, channels_last=last)
        losses = task.losses(items, 0)
        terms, _ = update(
            losses["loss"],
            {name: value.detach() for name, value in losses.items()},
            optimizer=task.box.optimizer,
            scaler=precision.scaler(),
            clip_norm=task.box.max_grad_norm,
            where="a benchmark",
            backward=task.backward,
        )
        settle(terms)

    return step


def their_step(box: Any, batch: Batch, device: torch.device) -> Step:
    """torchdistill's own."""

    def step() -> None:
        here = fresh(batch)
        images = here.images.to(device, non_blocking=True)
        loss = box.forward_process(images, here.targets.to(device, non_blocking=True), {})
        box.post_forward_process(loss)
        loss.item()

    return step


def _task(
    folder: Path, sizes: Sizes, device: torch.device, compiled: bool | None
) -> tuple[BoxTask, Precision]:
    """A box with random weights, prepared as a long run is."""
    settings = {"amp": "auto", "channels_last": True} if device.type == "cuda" else {}
    if compiled is not None:
        settings["compile"] = compiled
    recipe = _recipe(folder, sizes, settings)
    precision = Precision.choose(recipe.run.amp, device)
    models = _models(recipe, device)
    prepare(models, recipe, precision)
    box = boxes.make_box(recipe, models, device, 1)
    boxes.start_epoch(box, models, 0)
    compile_networks(box, recipe.run, device, LONG)
    return BoxTask(box, models, precision), precision


def _plain_box(folder: Path, sizes: Sizes, device: torch.device) -> Any:
    """A box as torchdistill leaves it."""
    recipe = _recipe(folder, sizes, {})
    models = _models(recipe, device)
    box = boxes.make_box(recipe, models, device, 1)
    boxes.start_epoch(box, models, 0)
    return box


def _recipe(folder: Path, sizes: Sizes, settings: dict[str, Any]) -> Recipe:
    teacher, student = sizes.resnets
    text = RECIPE.format(
        teacher=teacher, student=student, batch=sizes.batch_size, run=json.dumps(settings)
    )
    file = folder / "recipe.yaml"
    file.write_text(text)
    recipe = read_recipe(file)
    check_sections(recipe.config, str(file))
    return recipe


def _models(recipe: Recipe, device: torch.device) -> Models:
    torch.manual_seed(0)
    return load_models(recipe, device)
