"""A recipe's data sets in our order: seeded items and batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset, default_collate
from torchdistill.datasets.registry import get_collate_func

from resnet.recipe import Recipe
from srd.data.batches import TrainBatches
from srd.data.image_source import read_image
from srd.data.loader import Batch, make_loader
from srd.data.views import VIEW, seeded
from srd.distributed import processes
from srd.errors import UserError


class Unreadable(NamedTuple):
    """Stands for a picture that cannot be read, or not be transformed."""

    name: str  # and the reason


class SeededItems(Dataset[Any]):
    """A data set whose draws for (epoch, index) follow (seed, epoch, index).

    Where it raises, it gives an `Unreadable`: workers tell errors in pages.
    """

    def __init__(self, items: Any, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return load_item(self.items, *key, seed=self.seed)


class KeyedItems(SeededItems):
    """Items with their keys, for an evaluation that takes down what is said of each."""

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return key, super().__getitem__(key)


def load_item(items: Any, epoch: int, index: int, *, seed: int) -> Any:
    """What a data set gives, drawn from (seed, epoch, index); or an `Unreadable`."""
    try:
        with seeded(VIEW, seed, epoch, index):
            return items[index]
    except Exception as error:  # Pillow's, a data set's, a transform's: no common class
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return Unreadable(f"{item_name(items, index)} ({reason})")


def inner_dataset(items: Any) -> Any:
    """The data set inside torchdistill's wrappers."""
    while hasattr(items, "org_dataset"):
        items = items.org_dataset
    return items


def item_name(items: Any, index: int) -> str:
    """What to call an item in a message: its path, where the data set knows it."""
    items = inner_dataset(items)
    if isinstance(items, Subset):
        return item_name(items.dataset, int(items.indices[index]))
    samples = getattr(items, "samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], (tuple, list)):
        return str(samples[index][0])
    return f"item {index} of {type(items).__name__}"


def item_picture(items: Any, index: int) -> Image.Image:
    """The picture of an item before its transforms, where the data set knows it; a LookupError."""
    items = inner_dataset(items)
    if isinstance(items, Subset):
        return item_picture(items.dataset, int(items.indices[index]))
    if isinstance(getattr(items, "samples", None), list):
        return read_image(str(items.samples[index][0]))
    if hasattr(getattr(items, "images", None), "load"):
        picture: Image.Image = items.images.load(index)[0]
        return picture
    raise LookupError(f"{type(items).__name__} has no pictures by position")


def as_batch(items: list[Any]) -> Batch:
    """(key, (image, class[, ...])) pairs as the evaluator's batch."""
    broken = [item.name for _, item in items if isinstance(item, Unreadable)]
    whole = [(key, item[:2]) for key, item in items if not isinstance(item, Unreadable)]
    pairs = [item for _, item in whole]
    images, targets = default_collate(pairs) if pairs else (torch.empty(0), torch.empty(0))
    keys = torch.tensor([key for key, _ in whole], dtype=torch.long).reshape(-1, 2)
    return Batch(images, targets, broken, keys=keys)


@dataclass(frozen=True)
class Collate:
    """torchdistill's or torch's collation; of a batch with an `Unreadable`, that alone."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, items: list[Any]) -> Any:
        unreadable = (item for item in items if isinstance(item, Unreadable))
        return next(unreadable, None) or self.collate(items)


class TrainInput(NamedTuple):
    """The training batches in torchdistill's own form, in our order."""

    loader: DataLoader[Any]
    items: SeededItems
    batches: TrainBatches
    images: int
    class_names: list[str] | None  # where the data set knows them, as torchvision's do


def train_input(
    box: Any, recipe: Recipe, section: dict[str, Any], seed: int, pin_memory: bool
) -> TrainInput:
    """Our loader in the place of the box's: same data, batch size and collation, seeded order.

    Args:
        section: the recipe's `train_data_loader`.
    """
    theirs = box.train_data_loader
    if not isinstance(theirs.sampler, RandomSampler):
        raise UserError("train.train_data_loader.sampler: training is shuffled, use RandomSampler")
    size = len(theirs.dataset)
    batches = TrainBatches(size, theirs.batch_size, seed, processes.rank(), processes.world_size())
    collate = get_collate_func(section.get("collate_fn")) or default_collate
    items = SeededItems(theirs.dataset, seed)
    loader = make_loader(items, batches, theirs.num_workers, pin_memory, Collate(collate))
    names = getattr(recipe.config["datasets"][section["dataset_id"]], "classes", None)
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return TrainInput(loader, items, batches, size, names if known else None)


def split_items(items: Any) -> tuple[Tensor, Tensor, Any]:
    """A training batch as (images, targets, supplementary).

    Raises:
        UserError: a picture in it cannot be read.
    """
    if isinstance(items, Unreadable):
        raise UserError(f"cannot read {items.name}; replace the file")
    images, targets, *more = items
    return images, targets, more[0] if more else None
