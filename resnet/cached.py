"""A torchdistill teacher behind the teacher cache: what it gives, and what its hooks see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torchdistill.models.wrapper import AuxiliaryModelWrapper

from resnet import box as boxes
from resnet.inputs import TrainInput, item_name, load_item, split_items
from resnet.models import Models
from resnet.recipe import Recipe
from resnet.rehearsal import labelled
from resnet.sections import stages
from resnet.trainer import to_device
from srd.cache.manifest import FORMAT, Manifest, Recorded, Shapes, path_of, versions
from srd.cache.replay import OpenCache, Replay
from srd.data.fingerprint import fingerprint
from srd.device import Precision
from srd.errors import UserError
from srd.training.cached_teacher import At
from srd.training.run_cache import RunCache, lacking, look_into, weights_hash

OUTPUT = ".:output"  # what the teacher itself gives, beside `layer:output` of its hooks
Seen = tuple[Any, dict[str, dict[str, Any]]]  # a box's teacher output, and that of its hooks


class Items:
    """A torchvision data set as a source whose images have names and classes."""

    def __init__(self, items: Any) -> None:
        self.items = items
        targets = labelled("train", items).targets
        self.targets = np.zeros(len(items), dtype=np.int64) if targets is None else targets
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        """Its path, where the data set knows it."""
        return item_name(self.items, index)

    def load(self, index: int) -> Any:
        """Its pixels after the transforms, drawn from a seed of their own."""
        item = load_item(self.items, 0, index, seed=0)
        return np.asarray(item[0]), 0


def open_cache(
    path: str,
    recipe: Recipe,
    seed: int,
    models: Models,
    box: Any,
    inputs: TrainInput,
    precision: Precision,
    epochs: int,
) -> RunCache:
    """The cache in a folder, compared with the recipe, and ready to be written where it lacks steps.

    Raises:
        UserError: it was recorded otherwise, is no cache, or what the teacher says cannot be kept.
    """
    check_keeps(box, inputs)
    batch = split_items(inputs.loader.collate_fn([inputs.items[0, index] for index in range(2)]))
    images = to_device(batch, precision, channels_last=recipe.run.channels_last)
    boxes.start_epoch(box, models, 0)
    with precision.autocast():
        seen = fields_in(box.get_teacher_output(*images), 2)
    assert models.teacher is not None
    about = Recorded(
        str(models.teacher_name),
        "" if models.teacher_lacks else weights_hash(models.teacher),
        True,
    )

    def ours() -> Manifest:
        shapes = Shapes(
            fields={name: tuple(value.shape[1:]) for name, value in seen.items()},
            dtype=recipe.run.cache_dtype,
            top_logits=None,
            exact="float64" if precision.dtype == torch.float64 else "float32",
            batch_size=inputs.batches.batch_size,
            steps=len(inputs.batches),
        )
        described = what_it_sees(recipe, seed, inputs, precision)
        return Manifest(FORMAT, about, shapes, described, versions(recipe.run.pixels))

    cache = look_into(path, ours, epochs)
    if cache.is_whole:
        return cache
    if models.teacher_lacks:
        raise lacking(cache, UserError(f"there are no weights at {models.teacher_lacks}"))
    return cache.taught_by(about, cache.ours.shapes.fields)


def check_keeps(box: Any, inputs: TrainInput) -> None:
    """Raise a UserError where what the teacher says is not a function of each image alone."""
    if getattr(box, "teacher_model", None) is None:
        raise UserError("run.teacher_cache has no effect without a teacher: leave it out")
    if box.teacher_updatable or isinstance(box.teacher_model, AuxiliaryModelWrapper):
        raise UserError(
            "run.teacher_cache: this teacher is trained, or has a wrapper that looks at whole batches: "
            "only a frozen one (requires_grad: false) without a wrapper can be kept"
        )
    if getattr(inputs.loader.collate_fn, "collate", default_collate) is not default_collate:
        raise UserError(
            "run.teacher_cache: train.train_data_loader.collate_fn draws numbers of its own: "
            "leave one of the two out"
        )


def what_it_sees(
    recipe: Recipe, seed: int, inputs: TrainInput, precision: Precision
) -> dict[str, Any]:
    """Everything that decides which images the teacher sees, and what of it is kept."""
    settings = recipe.settings
    (train,) = stages(settings["train"])
    loader = train["train_data_loader"]
    described = {
        "seed": seed,
        "images": inputs.images,
        "files": fingerprint(Items(inputs.items.items)),
        "dataset": settings["datasets"].get(loader["dataset_id"], settings["datasets"]),
        "loader": loader,
        "teacher": train.get("teacher"),
        "model": settings["models"]["teacher_model"],
        "precision": str(precision),
        **path_of(recipe.run.pixels),
        **({"teacher_precision": "bfloat16"} if recipe.run.teacher_bf16 else {}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return plain


def fields_in(seen: Seen, rows: int) -> dict[str, Tensor]:
    """The tensors that a box's teacher gave, by `layer:output`; a UserError for anything else."""
    fields = {f"{path}:{io}": value for path, each in seen[1].items() for io, value in each.items()}
    for name, value in fields.items():
        kept = isinstance(value, Tensor) and value.is_floating_point() and len(value) == rows
        if not kept:
            raise UserError(
                f"run.teacher_cache: {name} of the teacher is no tensor with a row for each image"
            )
    return fields


def as_seen(values: Mapping[str, Tensor]) -> Seen:
    """What was kept, as a box has it."""
    seen: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        path, _, io = name.rpartition(":")
        seen.setdefault(path, {})[io] = value
    return values[OUTPUT], seen


@contextmanager
def teaching(
    box: Any,
    run: RunCache | None,
    models: Models,
    precision: Precision,
    tell: Callable[[str], object],
) -> Iterator[At]:
    """The box's teacher behind the run's cache, where there is one.

    Yields:
        What is to be called with the place of every batch before it is taught.
    """
    if run is None:
        yield lambda place: None
        return

    def load() -> None:
        if models.teacher_lacks:
            raise UserError(f"there are no weights at {models.teacher_lacks}")

    for line in run.lines():
        tell(line)
    assert run.there is not None
    cache = OpenCache.at(run.folder, run.there)
    replay = Replay(cache, repeat=None, device=precision.device, load=load, tell=tell)
    ask = box.get_teacher_output

    def recorded(sample_batch: Tensor, targets: Any, supp_dict: Any, **more: Any) -> Seen:
        def compute() -> dict[str, Tensor]:
            load()
            seen = ask(sample_batch, targets, supp_dict, **more)
            return fields_in(seen, len(sample_batch))

        return as_seen(replay.values(sample_batch, compute))

    box.get_teacher_output = recorded
    try:
        yield replay.at
    finally:
        box.get_teacher_output = ask
        replay.close()
