"""From a configuration to batches: transforms, loaders, and mixup."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from srd.config.fields import Augment, Config, Data
from srd.data.augment import train_transform
from srd.data.batches import EvalBatches, TrainBatches
from srd.data.fast_views import check_installed
from srd.data.finish import leave_unfinished
from srd.data.image_source import ImageSource
from srd.data.loader import Batch, BrokenFiles, collate, make_loader
from srd.data.preprocess import Preprocessing
from srd.data.sources import open_splits
from srd.data.views import SeededViews
from srd.distributed import processes


class Inputs(NamedTuple):
    """Everything that a run reads; the training half is None when only evaluating.

    Unlabelled pictures have 0 classes.
    """

    num_classes: int
    class_names: list[str]
    val: DataLoader[Batch]
    val_images: int
    val_batch_size: int  # over all processes
    train: DataLoader[Batch] | None
    train_batches: TrainBatches | None
    train_images: int
    broken: BrokenFiles
    notes: list[str]
    val_source: ImageSource


def preprocessing(data: Data, image_size: int) -> Preprocessing:
    """What an image goes through in an evaluation."""
    return Preprocessing(image_size, data.mean, data.std, data.eval_crop, data.eval_interpolation)


def eval_transform(data: Data, image_size: int) -> Any:
    """Resize to image_size / eval_crop, centre crop, normalise: PIL image to (3, H, W)."""
    return preprocessing(data, image_size).transform()


def inputs_of(config: Config, *, training: bool, pin_memory: bool) -> Inputs:
    """`open_inputs` of a whole configuration."""
    return open_inputs(
        config.data,
        config.augment,
        image_size=config.model.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        training=training,
        pin_memory=pin_memory,
        repeat=config.cache.epochs,
    )


def open_inputs(
    data: Data,
    augment: Augment,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    training: bool,
    pin_memory: bool,
    repeat: int | None = None,
) -> Inputs:
    """Open the data set, check it, and make its loaders for this process.

    Args:
        repeat: see `TrainBatches`.

    Raises:
        UserError: no data, empty or different classes, too few images for a batch.
    """
    here = (processes.rank(), processes.world_size())
    loader = train_batches = None
    train_source, val_source, notes = open_splits(data, training=training)
    if train_source is not None:
        train_batches = TrainBatches(len(train_source), batch_size, seed, *here, repeat)
        released = train_transform(augment, data, image_size)
        undecoded = False
        if data.pixels == "device":
            undecoded, said = _decodes(pin_memory)
            notes = [*notes, *said]
        transform, finish = leave_unfinished(released, data.pixels, undecoded=undecoded)
        files = data.pixels != "released"
        views = SeededViews(train_source, transform, seed, substitute=True, files=files)
        stack = partial(collate, finish=finish)
        loader = make_loader(views, train_batches, data.workers, pin_memory, stack)
    val_views = SeededViews(val_source, eval_transform(data, image_size), seed, substitute=False)
    val_batches = EvalBatches(len(val_source), data.eval_batch_size, *here)
    return Inputs(
        num_classes=0 if data.unlabelled else len(val_source.classes),
        class_names=[] if data.unlabelled else val_source.classes,
        val=make_loader(val_views, val_batches, data.workers, pin_memory),
        val_images=len(val_source),
        val_batch_size=data.eval_batch_size,
        train=loader,
        train_batches=train_batches,
        train_images=len(train_source) if train_source is not None else 0,
        broken=BrokenFiles(data.skip_broken),
        notes=notes,
        val_source=val_source,
    )


def _decodes(gpu: bool) -> tuple[bool, list[str]]:
    """Whether the device decodes training pictures, and why not."""
    from srd.data.undecoded import why_not_on

    check_installed()
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    reason = why_not_on(device)
    return not reason, [f"pictures are decoded in the workers: {reason}"] if reason else []


def sample(inputs: Inputs, most: int) -> Inputs:
    """`inputs` with at most so many validation images, spread evenly over all of them."""
    every = -(-inputs.val_images // most)
    if every == 1:
        return inputs
    here = (processes.rank(), processes.world_size())
    batch_size = inputs.val_batch_size
    batches = EvalBatches(inputs.val_images, batch_size, *here, every=every)
    loader = make_loader(inputs.val.dataset, batches, inputs.val.num_workers, inputs.val.pin_memory)
    return inputs._replace(val=loader, val_images=-(-inputs.val_images // every))
