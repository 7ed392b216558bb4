"""Training views: ours by pixel path, timm's transform, and the decoder alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import create_dataset, create_loader, create_transform
from torch.utils.data._utils.pin_memory import pin_memory
from torchvision import transforms

from srd.bench.timing import Line, Sizes, in_turn
from srd.config.fields import IMAGENET_MEAN, IMAGENET_STD, Augment, Data
from srd.data.augment import train_transform
from srd.data.batches import TrainBatches
from srd.data.encoded import of_file
from srd.data.fast_views import Normalised, fast_steps
from srd.data.finish import leave_unfinished
from srd.data.folder_images import FolderImages
from srd.data.hf_datasets import open_dataset
from srd.data.image_source import ImageSource
from srd.data.loader import collate, make_loader, to_device
from srd.data.packing import Packing, pack
from srd.data.undecoded import why_not_on
from srd.data.views import SeededViews

WIDTH, HEIGHT = 500, 375  # ImageNet's usual size
FEWEST = 8  # images of a batch that a worker hands over: of two, that would be most of the work


def measure(sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """One process that makes views by each pixel path, and batches from a worker."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, sizes.images)
        yield from finishing(folder, sizes, device)
        if sizes.gpu_alone:
            return
        yield from views(folder, sizes)
        yield from resnet_views(folder, sizes)
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


def views(folder: Path, sizes: Sizes) -> Iterator[Line]:
    """DeiT's views of the folder in this process, without batches: by each path, and by timm."""
    source, size = FolderImages(folder, "train"), sizes.image_size
    files = sorted(folder.glob("train/*/*.jpg"))
    timms = plain_transform(sizes)

    calls = {
        "released": _epochs(path(source, "released", size)),
        "reference": lambda: [timms(decoded(file)) for file in files],
        "floor": lambda: [decoded(file) for file in files],
    }
    if fast_is_installed():
        calls |= {name: _epochs(path(source, name, size)) for name in ("fast", "device")}
        calls["device, files left to decode"] = _epochs(path(source, "device", size, True))
        side = max(1, size * 8 // 7)
        packings = {
            "": Packing(),
            f" at {side}": Packing(side),
            " uncompressed": Packing(side, None),
        }
        for name, packing in packings.items() if find_spec("datasets") else ():
            calls[f"fast, packed{name}"] = _epochs(path(_packed(folder, packing), "fast", size))
    times = in_turn(calls, seconds=sizes.seconds)
    released, floor = times["released"], median(times.pop("floor"))
    references = {"released": times.pop("reference")}
    for name, ours in times.items():
        yield Line(
            name=f"data: DeiT's views, {name}",
            ours=ours,
            reference=references.get(name, released),
            floor=floor,
            items=len(source),
            note="reference of DeiT's views, released: Pillow and timm's transform; of the others: "
            "released; floor: Pillow decodes; device: RandAugment's pixels are left to the device",
        )


def resnet_views(folder: Path, sizes: Sizes) -> Iterator[Line]:
    """torchvision's chain, normalised: as it is, and on the fast path."""
    files = sorted(folder.glob("train/*/*.jpg"))
    crop, flip = transforms.RandomResizedCrop(sizes.image_size), transforms.RandomHorizontalFlip()
    numbers = transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    plain = transforms.Compose([crop, flip, *numbers])
    calls: dict[str, Any] = {
        "reference": lambda: [plain(decoded(file)) for file in files],
        "floor": lambda: [decoded(file) for file in files],
    }
    if not fast_is_installed():
        return
    fast = transforms.Compose([*fast_steps([crop, flip]), Normalised(*numbers)])
    calls["ours"] = lambda: [fast(of_file(file, turn=False)) for file in files]
    times = in_turn(calls, seconds=sizes.seconds)
    yield Line(
        name="data: torchvision's views, fast",
        ours=times["ours"],
        reference=times["reference"],
        floor=median(times["floor"]),
        items=len(files),
        note="reference of torchvision's views: Pillow and its transforms",
    )


def path(of: ImageSource, pixels: str, size: int, undecoded: bool = False) -> SeededViews:
    """DeiT's views of a source by a pixel path, up to what a worker hands over."""
    released = train_transform(Augment(), Data(), size)
    transform, _ = leave_unfinished(released, pixels, undecoded=undecoded)
    return SeededViews(of, transform, 0, True, files=pixels != "released")


def finishing(folder: Path, sizes: Sizes, device: torch.device) -> Iterator[Line]:
    """A batch of the folder's views from a worker's hands to normalised images on the device."""
    if not fast_is_installed():
        return
    source, size = FolderImages(folder, "train"), min(sizes.batch_size, sizes.images)
    _, finish = leave_unfinished(train_transform(Augment(), Data(), sizes.image_size))
    kinds = {"fast": ("fast", False), "RandAugment's pixels too": ("device", False)}
    if not why_not_on(device):
        kinds["decoding and RandAugment's pixels too"] = ("device", True)
    calls = {}
    for name, (pixels, undecoded) in kinds.items():
        views = path(source, pixels, sizes.image_size, undecoded)
        batch = collate([views[0, index] for index in range(size)], finish)
        if device.type == "cuda":
            batch = pin_memory(batch)
        calls[name] = partial(to_device, batch, device, torch.float32)
    times = in_turn(calls, seconds=sizes.seconds, device=device)
    reference = times.pop("fast")
    for name, ours in times.items():
        yield Line(
            name=f"data: a batch finished on the device, {name}",
            ours=ours,
            reference=reference,
            items=size,
            note="reference of finished batches: without that, as on the fast path",
        )


def decoded(file: Path) -> Image.Image:
    """As everybody reads a picture."""
    with Image.open(file) as image:
        return image.convert("RGB")


def fast_is_installed() -> bool:
    """Whether there is a fast path to time."""
    return all(find_spec(name) for name in ("simplejpeg", "cv2"))


def _epochs(views: SeededViews) -> Callable[[], None]:
    """Makes all views of an epoch, of another one each time."""
    epoch = iter(range(1, 1 << 30))

    def make() -> None:
        now = next(epoch)
        for index in range(len(views)):
            views[now, index]

    return make


def _packed(folder: Path, packing: Packing) -> ImageSource:
    """The folder as `srd data pack` writes it."""
    out = folder / f"packed_{packing.side}_{packing.quality}"
    pack(Data(path=str(folder)), out, packing)
    train = open_dataset(Data(path=str(out)), True).train
    assert train is not None
    return train


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
    """Epochs of the folder through one worker process, on the released path."""
    source, data, augment = FolderImages(folder, "train"), Data(), Augment()
    size = min(max(sizes.batch_size, FEWEST), len(source))
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
