"""Pictures that are decoded where the batch is: by the GPU, or where it cannot, as in a worker."""

from __future__ import annotations

import io
import sys
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.encoded import Encoded
from srd.data.finish import leave_unfinished
from srd.data.loader import Batch, collate, make_loader, to_device
from srd.data.views import SeededViews
from srd.errors import UserError
from tests.data.pictures import picture

pytest.importorskip("simplejpeg")
pytest.importorskip("cv2")
from srd.data import undecoded
from srd.data.fast_views import resized
from srd.data.undecoded import Cut, decoded_crops, resized_crop, why_not_on

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZE = 48
gpu = pytest.mark.skipif(
    bool(why_not_on(GPU if torch.cuda.is_available() else CPU)), reason="no GPU decodes"
)


class Files:
    """Pictures in memory, upright, of which GPUs decode the plain JPEG files."""

    classes = ("a",)

    def __init__(self, *files: bytes) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int) -> tuple[Encoded, int]:
        return Encoded(self.files[index], f"{index}.jpg", turn=True), 0

    load = encoded

    def name(self, index: int) -> str:
        return f"{index}.jpg"


def written(image: Image.Image, kind: str = "JPEG", **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def without_codes(file: bytes) -> bytes:
    """A JPEG file whose table of Huffman codes is none: its head and its end are whole."""
    place = file.index(b"\xff\xc4")
    return file[: place + 5] + b"\xff" * 16 + file[place + 21 :]


LARGE = written(picture(300, 200, seed=1), quality=92)
PLAIN = Files(
    LARGE, written(picture(90, 130, seed=2)), written(picture(64, 64, seed=3).convert("L"))
)
LEFT = (
    written(picture(90, 70), "PNG"),
    written(picture(90, 70), progressive=True),
    written(picture(90, 70), exif=turned(6)),
)
# The last but one lacks its end, and the last stands in for it.
MIXED = Files(LEFT[0], *PLAIN.files[:2], *LEFT[1:], LARGE[:-2], PLAIN.files[2])


def batch_of(files: Files, keys: list[tuple[int, int]], *, workers: int = 0, **how: Any) -> Batch:
    """The batch of these views, on the device path."""
    transform = train_transform(Augment(erase=0.5), Data(), SIZE)
    early, finish = leave_unfinished(transform, "device", **how)
    views = SeededViews(files, early, 0, True, files=True)
    pinned = torch.cuda.is_available()
    return next(iter(make_loader(views, [keys], workers, pinned, partial(collate, finish=finish))))


def keys_of(files: Files, epochs: int) -> list[tuple[int, int]]:
    return [(epoch, index) for epoch in range(epochs) for index in range(len(files))]


@pytest.mark.parametrize("workers", [0, 1])
def test_without_a_gpu_they_are_the_workers_pixels(workers: int) -> None:
    keys = keys_of(MIXED, 4)
    left = batch_of(MIXED, keys, workers=workers, undecoded=True)
    assert len(left.images) == 4 * len(LEFT) and left.rest is not None and left.rest.files
    assert left.rest.files.places == [p for p, (_, i) in enumerate(keys) if i in (1, 2, 5, 6)]
    assert len(left.broken) == 4 and left.broken[0].startswith("5.jpg ")
    assert any(cut.flipped for cut in left.rest.files.cuts)
    whole = to_device(batch_of(MIXED, keys), CPU, torch.float32)
    seen = to_device(left, CPU, torch.float32)
    assert torch.equal(seen[0], whole[0]) and torch.equal(seen[1], whole[1])
    alone = batch_of(PLAIN, keys_of(PLAIN, 1), undecoded=True)  # none is decoded yet
    assert len(alone.images) == 0 and len(to_device(alone, CPU, torch.float32)[0]) == len(PLAIN)


def test_steps_between_are_left_to_the_worker() -> None:
    transform = train_transform(Augment(rand_augment=""), Data(), SIZE)  # its jitter reads pixels
    early, _ = leave_unfinished(transform, "device", undecoded=True)
    assert isinstance(early(PLAIN.encoded(0)[0]).pixels, torch.Tensor)


def test_a_damaged_picture_stops_the_run_where_it_is_decoded() -> None:
    damaged = Files(without_codes(LARGE), LARGE)
    batch = batch_of(damaged, [(0, 0), (0, 1)], undecoded=True)
    with pytest.raises(UserError, match=r"^cannot read 0\.jpg \(.*\); replace the file$"):
        to_device(batch, CPU, torch.float32)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(10, 20, 150, 120), (3, 4, 20, 31)], ids=["fewer", "more"])
def test_a_crop_is_resized_as_on_the_fast_path(mode: str, box: tuple[int, ...]) -> None:
    pixels = np.asarray(picture(200, 170, seed=4))
    top, left, height, width = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width].copy())
    seen = resized_crop(crop, Cut("", box, (SIZE, SIZE + 1), mode)).permute(1, 2, 0).numpy()
    assert np.abs(seen.astype(int) - resized(pixels, box, 1, (SIZE, SIZE + 1), mode)).max() <= 1


def test_nvimagecodec_cuts_out_what_was_asked_for() -> None:
    """By its decoder for the CPU, which is libjpeg-turbo as simplejpeg is."""
    codec = pytest.importorskip("nvidia.nvimgcodec")
    if codec.__version__.startswith("0.8."):
        pytest.skip("nvImageCodec 0.8 decodes nothing without a GPU")
    import simplejpeg

    files = [*PLAIN.files, without_codes(LARGE), b"no picture"]
    cut = Cut("", (5, 6, 40, 50), (SIZE, SIZE), "bicubic")
    data = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    crops = decoded_crops(data, [cut] * len(data), CPU)
    for file, crop in zip(PLAIN.files, crops, strict=False):
        assert crop is not None
        assert (crop.numpy() == simplejpeg.decode_jpeg(file)[5:45, 6:56]).all()
    assert crops[3:] == [None, None]


def test_a_version_that_ends_the_process_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    package, codec = ModuleType("nvidia"), ModuleType("nvidia.nvimgcodec")
    codec.__version__ = "0.9.0"  # type: ignore[attr-defined]
    for module in (package, codec):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    undecoded._codec.cache_clear()
    assert "0.9.0 decodes no crops on a GPU" in why_not_on(GPU)
    undecoded._codec.cache_clear()


@gpu
@pytest.mark.gpu
def test_a_gpu_decodes_the_workers_pictures() -> None:
    keys = keys_of(MIXED, 30)
    left = batch_of(MIXED, keys, undecoded=True)
    seen, again = (to_device(left, GPU, torch.float32)[0].cpu() for _ in range(2))
    assert torch.equal(seen, again)
    whole = to_device(batch_of(MIXED, keys), GPU, torch.float32)[0].cpu()
    apart = (seen - whole).abs().mean(dim=(1, 2, 3)) * 255 * 0.225
    print(f"of 255: mean {apart.mean():.3f}, of a view at most {apart.max():.3f}")
    assert apart.mean() < 2 and apart.max() < 16


@gpu
@pytest.mark.gpu
def test_a_gpu_leaves_what_it_cannot_decode_to_the_cpu() -> None:
    data = torch.frombuffer(bytearray(b"\xff\xd8\xff\xd9"), dtype=torch.uint8)
    assert decoded_crops([data], [Cut("", (0, 0, 1, 1), (4, 4), "bicubic")], GPU) == [None]
    damaged = Files(without_codes(LARGE), LARGE)
    batch = batch_of(damaged, [(0, 0), (0, 1)], undecoded=True)
    with pytest.raises(UserError, match=r"^cannot read 0\.jpg "):
        to_device(batch, GPU, torch.float32)
