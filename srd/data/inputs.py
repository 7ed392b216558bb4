"""From a configuration to batches: transforms, loaders, and mixup."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageOps
from timm.data import Mixup, create_transform
from torch import Tensor
from torch.utils.data import DataLoader

from srd.config.fields import Config
from srd.data.preprocess import Preprocessing
from srd.data.sources import ImageSource, check_same_classes, open_images
from srd.data.views import (
    MIX,
    Batch,
    BrokenFiles,
    EvalBatches,
    SeededViews,
    TrainBatches,
    make_loader,
    seeded,
)
from srd.device import Precision
from srd.distributed import processes as dist
from srd.errors import UserError
from srd.evaluation.accuracy import Accuracy, evaluate
from srd.run.log import RunLog


class Inputs(NamedTuple):
    """Everything that a run reads; the training half is None when only evaluating."""

    num_classes: int
    class_names: list[str]
    val: DataLoader[Batch]
    val_images: int
    train: DataLoader[Batch] | None
    train_batches: TrainBatches | None
    train_images: int
    broken: BrokenFiles


def train_transform(config: Config) -> Any:
    """timm's training transform: PIL image to a normalised (3, H, W) tensor."""
    augment, data = config.augment, config.data
    if augment.rand_augment:
        _check_pillow()
    try:
        return create_transform(
            config.model.image_size,
            is_training=True,
            scale=augment.crop_scale,
            ratio=augment.crop_ratio,
            interpolation=augment.interpolation,
            hflip=augment.flip,
            auto_augment=augment.rand_augment or None,
            color_jitter=augment.color_jitter or None,
            re_prob=augment.erase,
            re_mode=augment.erase_mode,
            re_count=augment.erase_count,
            mean=data.mean,
            std=data.std,
        )
    except (AssertionError, ValueError, NotImplementedError):
        raise UserError(
            f"augment.rand_augment {augment.rand_augment!r} is not one of timm's policies, such as "
            "'rand-m9-mstd0.5-inc1' (empty: none)"
        ) from None


def _check_pillow() -> None:
    """timm's RandAugment posterises to 0 bits now and then; Pillow 13 and newer refuse that."""
    try:
        ImageOps.posterize(Image.new("RGB", (1, 1)), 0)
    except ValueError:
        raise UserError(
            "this Pillow cannot run timm's RandAugment: pip install 'pillow<13'"
        ) from None


def preprocessing(config: Config) -> Preprocessing:
    """What an image goes through in an evaluation."""
    data = config.data
    return Preprocessing(
        config.model.image_size, data.mean, data.std, data.eval_crop, data.eval_interpolation
    )


def eval_transform(config: Config) -> Any:
    """Resize to image_size / eval_crop, centre crop, normalise: PIL image to (3, H, W)."""
    return preprocessing(config).transform()


def open_inputs(config: Config, training: bool, pin_memory: bool) -> Inputs:
    """Open the data set, check it, and make its loaders for this process.

    Raises:
        UserError: no data, empty or different classes, too few images for a batch.
    """
    data, train = config.data, config.train
    here = (dist.rank(), dist.world_size())
    loader = train_batches = train_source = None
    if training:
        train_source = open_images(data.dataset, data.path, "train", data.images_per_class)
        train_batches = TrainBatches(len(train_source), train.batch_size, config.seed, *here)
        views = SeededViews(train_source, train_transform(config), config.seed, substitute=True)
        loader = make_loader(views, train_batches, data.workers, pin_memory)
    val_source: ImageSource = open_images(data.dataset, data.path, "val")
    if train_source is not None:
        check_same_classes(train_source, val_source)
    val_views = SeededViews(val_source, eval_transform(config), config.seed, substitute=False)
    val_batches = EvalBatches(len(val_source), data.eval_batch_size, *here)
    return Inputs(
        num_classes=len(val_source.classes),
        class_names=val_source.classes,
        val=make_loader(val_views, val_batches, data.workers, pin_memory),
        val_images=len(val_source),
        train=loader,
        train_batches=train_batches,
        train_images=len(train_source) if train_source is not None else 0,
        broken=BrokenFiles(data.skip_broken),
    )


class Mix:
    """timm's mixup and cutmix, drawn from (seed, step): the same on every process.

    Without either, class indices pass through and the loss smooths them.
    """

    def __init__(self, config: Config, num_classes: int) -> None:
        augment, self.seed = config.augment, config.seed
        self.mixup: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mix_probability,
                switch_prob=augment.mix_switch,
                label_smoothing=augment.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) and (B,) to mixed images and (B, C) targets; images are changed in place."""
        if self.mixup is None:
            return images, targets
        with seeded(MIX, self.seed, step):
            mixed: tuple[Tensor, Tensor] = self.mixup(images, targets)
        return mixed


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (channels last on a GPU) and targets on the device, without waiting for the copy."""
    images = batch.images.to(device, dtype, non_blocking=True)
    if device.type == "cuda":
        images = images.contiguous(memory_format=torch.channels_last)
    return images, batch.targets.to(device, non_blocking=True)


def measure(
    predict: Callable[[Tensor], Tensor],
    inputs: Inputs,
    precision: Precision,
    log: RunLog,
    label: str = "evaluating",
    stop: Callable[[], bool] = lambda: False,
) -> Accuracy:
    """Accuracy of `predict` (images to logits) on the validation images, with a progress bar."""
    skipped = len(inputs.broken.names)
    with log.bar(label, inputs.val_images, unit="image") as bar:
        accuracy = evaluate(
            predict,
            inputs.val,
            precision,
            inputs.broken,
            lambda images: bar.advance(images * dist.world_size()),
            stop,
        )
    if (now := len(inputs.broken.names)) > skipped:
        log.info(f"skipped {now - skipped} files that could not be read")
    return accuracy
