"""torchdistill's step: in our loop, and in torchdistill's own box."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from resnet import box as boxes
from resnet.models import Models, load_models
from resnet.recipe import Recipe, read_recipe
from resnet.sections import check_sections
from resnet.train import prepare
from resnet.trainer import BoxTask, to_device
from srd.bench.step import fresh, random_batch
from srd.bench.timing import Line, Sizes, in_turn
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
run: {{amp: {amp}, channels_last: {last}}}
"""


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """One update from a batch in memory."""
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as name:
        task, precision = _task(Path(name), sizes, device, plain=False)
        theirs = _task(Path(name), sizes, device, plain=True)[0].box
    batch = random_batch(sizes, device)

    def our_step() -> None:
        here = fresh(batch)
        items = to_device((here.images, here.targets, {}), precision, channels_last=on_gpu)
        losses = task.losses(items, 0)
        update(
            losses["loss"],
            {name: value.detach() for name, value in losses.items()},
            optimizer=task.box.optimizer,
            scaler=precision.scaler(),
            clip_norm=task.box.max_grad_norm,
            where="a benchmark",
            backward=task.backward,
        )

    def their_step() -> None:
        here = fresh(batch)
        images = here.images.to(device, non_blocking=True)
        loss = theirs.forward_process(images, here.targets.to(device, non_blocking=True), {})
        theirs.post_forward_process(loss)
        loss.item()

    calls = {"ours": our_step, "reference": their_step}
    times = in_turn(calls, seconds=sizes.seconds, device=device)
    yield Line(
        name=f"resnet: {sizes.resnets[1]} taught by {sizes.resnets[0]}",
        ours=times["ours"],
        reference=times["reference"],
        items=sizes.batch_size,
        note="reference: torchdistill's own box in float32",
    )


def _task(
    folder: Path, sizes: Sizes, device: torch.device, *, plain: bool
) -> tuple[BoxTask, Precision]:
    """A box with random weights; prepared as our runs are, or as torchdistill leaves it."""
    teacher, student = sizes.resnets
    gpu = device.type == "cuda" and not plain
    text = RECIPE.format(
        teacher=teacher, student=student, batch=sizes.batch_size,
        amp="auto" if gpu else "off", last=str(gpu).lower(),
    )  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(text)
    recipe: Recipe = read_recipe(file)
    check_sections(recipe.config, str(file))
    precision = Precision.choose(recipe.run.amp, device)
    torch.manual_seed(0)
    models: Models = load_models(recipe, device)
    if not plain:
        prepare(models, recipe, precision)
    box = boxes.make_box(recipe, models, device, 1)
    boxes.start_epoch(box, models, 0)
    return BoxTask(box, models, precision), precision
