"""A recipe's data sets in our order: seeded items and batches."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, default_collate
from torchdistill.datasets.registry import get_collate_func

from resnet.recipe import Recipe
from srd.data.batches import TrainBatches
from srd.data.loader import Batch, make_loader
from srd.data.views import VIEW, seeded
from srd.distributed import processes
from srd.errors import UserError


class SeededItems(Dataset[Any]):
    """A data set whose draws for (epoch, index) follow (seed, epoch, index)."""

    def __init__(self, items: Any, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with seeded(VIEW, self.seed, epoch, index):
            return self.items[index]


def as_batch(items: list[Any]) -> Batch:
    """(image, class[, ...]) pairs as the evaluator's batch."""
    images, targets = default_collate([item[:2] for item in items])
    return Batch(images, targets, [])


class TrainInput(NamedTuple):
    """The training batches in torchdistill's own form, in our order."""

    loader: DataLoader[Any]
    batches: TrainBatches
    images: int
    class_names: list[str] | None  # where the data set knows them, as torchvision's do


def train_input(box: Any, recipe: Recipe, seed: int, pin_memory: bool) -> TrainInput:
    """Our loader in the place of the box's: same data, batch size and collation, seeded order."""
    theirs = box.train_data_loader
    if theirs is None:
        raise UserError("train.train_data_loader: no such dataset_id under datasets")
    if not isinstance(theirs.sampler, RandomSampler):
        raise UserError("train.train_data_loader.sampler: training is shuffled, use RandomSampler")
    section = recipe.config["train"]["train_data_loader"]
    size = len(theirs.dataset)
    batches = TrainBatches(size, theirs.batch_size, seed, processes.rank(), processes.world_size())
    collate = get_collate_func(section.get("collate_fn")) or default_collate
    items = SeededItems(theirs.dataset, seed)
    loader = make_loader(items, batches, theirs.num_workers, pin_memory, collate)
    names = getattr(recipe.config["datasets"][section["dataset_id"]], "classes", None)
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return TrainInput(loader, batches, size, names if known else None)


def split_items(items: Any) -> tuple[Tensor, Tensor, Any]:
    """A training batch as (images, targets, supplementary)."""
    images, targets, *more = items
    return images, targets, more[0] if more else None
