"""Training views: ours by pixel path, timm's transform, and the decoder alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_dataset, create_loader, create_transform

from srd.bench.timing import Line, Sizes, in_turn
from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.batches import TrainBatches
from srd.data.finish import leave_unfinished
from srd.data.folder_images import FolderImages
from srd.data.loader import collate, make_loader, to_device
from srd.data.views import SeededViews

WIDTH, HEIGHT = 500, 375  # ImageNet's usual size


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """One process that makes views, and batches from a worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, sizes.images)
        yield views(folder, sizes)
        yield loaders(folder, sizes, device)


def write_pictures(folder: Path, count: int) -> None:
    """`count` JPEG files of about 94 KB in two classes under `folder`/train: smooth shapes and grain."""
    draws = np.random.default_rng(0)
    for number in range(count):
        coarse = draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = draws.normal(0, 22, (HEIGHT, WIDTH, 3))
        pixels = (np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)
        file = folder / "train" / f"class_{number % 2}" / f"{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.5))
        picture.save(file, quality=90)


def views(folder: Path, sizes: Sizes) -> Line:
    """All views of the folder in this process, without batches."""
    source, data, augment = FolderImages(folder, "train"), Data(), Augment()
    ours = SeededViews(source, train_transform(augment, data, sizes.image_size), 0, True)
    timms = plain_transform(sizes)
    files = sorted(folder.glob("train/*/*.jpg"))

    def decoded(file: Path) -> Image.Image:
        with Image.open(file) as image:
            return image.convert("RGB")

    epoch = iter(range(1, 1 << 30))

    def make_ours() -> None:
        now = next(epoch)
        for index in range(len(source)):
            ours[now, index]

    times = in_turn(
        {
            "ours": make_ours,
            "reference": lambda: [timms(decoded(file)) for file in files],
            "floor": lambda: [decoded(file) for file in files],
        },
        seconds=sizes.seconds,
    )
    return Line(
        name="data: training views in one process",
        ours=times["ours"],
        reference=times["reference"],
        floor=sorted(times["floor"])[len(times["floor"]) // 2],
        items=len(source),
        note="reference: Pillow and timm's transform; floor: Pillow decodes",
    )


def plain_transform(sizes: Sizes) -> Any:
    """timm's, with the paper's settings."""
    return create_transform(
        sizes.image_size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )


def loaders(folder: Path, sizes: Sizes, device: torch.device) -> Line:
    """Epochs of the folder through one worker process."""
    source, data, augment = FolderImages(folder, "train"), Data(), Augment()
    size = min(sizes.batch_size, len(source))
    transform, finish = leave_unfinished(train_transform(augment, data, sizes.image_size))
    views = SeededViews(source, transform, 0, True)
    stack = partial(collate, finish=finish)
    ours = make_loader(views, TrainBatches(len(source), size, 0), 1, False, stack)
    timms = create_loader(
        create_dataset("", str(folder), split="train"),
        (3, sizes.image_size, sizes.image_size),
        size,
        is_training=True,
        use_prefetcher=False,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        num_workers=1,
        persistent_workers=True,
    )

    def our_epoch() -> None:
        for batch in ours:
            to_device(batch, device, torch.float32)

    def timms_epoch() -> None:
        for images, targets in timms:
            images.to(device), targets.to(device)

    calls = {"ours": our_epoch, "reference": timms_epoch}
    times = in_turn(calls, seconds=sizes.seconds, device=device)
    return Line(
        name="data: batches from one worker, on the device",
        ours=times["ours"],
        reference=times["reference"],
        items=len(source) // size * size,
        note="reference: timm's loader",
    )
