"""The device path: RandAugment is drawn in the worker and run on the batch, within a step of Pillow's."""

from __future__ import annotations

import io
import itertools
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment as timms
from torchvision import transforms

from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.encoded import Encoded
from srd.data.finish import Unfinished, leave_unfinished
from srd.data.inputs import open_inputs
from srd.data.loader import collate, make_loader, to_device
from srd.data.views import VIEW, SeededViews, seeded
from tests.data.pictures import picture

pytest.importorskip("simplejpeg")
pytest.importorskip("cv2")
from srd.data.batched_operations import Drawn, augmented, gather_operations
from srd.data.planned import Plan, _planned

CPU = torch.device("cpu")
SIZE = 40
FILL = (124, 116, 104)
MOVING = ("Rotate", "Shear", "Translate")
KNOWN = sorted(name for name in timms.NAME_TO_OP if not name.startswith("GaussianBlur"))
# The share of values that lie apart from Pillow's, where pixels were moved: by a step of 255.
SHARE = 0.005
# Mean absolute differences over all views, in 255ths: from Pillow's operations, and from the fast path's.
MEAN, MEAN_OF_FAST = 0.02, 0.5


class Files:
    """JPEG files in memory."""

    classes = ("a", "b")

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.files = []
        for number, size in enumerate(sizes):
            file = io.BytesIO()
            picture(*size, seed=number).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, index: int) -> tuple[Encoded, int]:
        return Encoded(self.files[index]), index % 2

    load = encoded

    def name(self, index: int) -> str:
        return f"{index}.jpg"


FILES = Files([(90, 70), (60, 90), (50, 50), (120, 44)])


def batched(pixels: list[np.ndarray], drawn: list[Any]) -> np.ndarray:
    """Pictures (H, W, 3) after the operations of each."""
    images = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in pixels])
    return augmented(images, gather_operations(drawn)).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", KNOWN)
def test_an_operation_is_timms(name: str) -> None:
    """To the bit, or where pixels move to a step; at strengths from none to all, in the two directions."""
    pictures = [picture(41, 34, seed=number) for number in range(6)]
    pictures += [Image.new("RGB", (41, 34), (7, 120, 255)), Image.new("RGB", (41, 34))]
    shown, drawn, expected = [], [], []
    for interpolation in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        for magnitude in (0.0, 0.4, 3.3, 7.0, 10.0):
            how = {"img_mean": FILL, "interpolation": interpolation, "translate_const": 27}
            operation = timms.AugmentOp(name, 1.0, magnitude, how)
            for number, image in enumerate(pictures):
                random.seed(number)
                expected.append(np.asarray(operation(image)))
                random.seed(number)
                drawn.append(_planned(operation)(Plan(*image.size)).drawn)
                shown.append(np.asarray(image))
    apart = np.abs(batched(shown, drawn).astype(int) - np.array(expected))
    if name.startswith(MOVING):
        assert apart.max() <= 1 and (apart > 0).mean() < SHARE
    else:
        assert apart.max() == 0


def test_a_contrast_that_is_stretched_by_a_whole_number_is_rounded_as_pillows() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pairs = [
        (low, low + span) for span in (3, 5, 15, 17, 51, 85) for low in range(0, 256 - span, 3)
    ]
    pictures = [ramp.clip(*pair) for pair in pairs]
    seen = batched(pictures, [(Drawn("auto_contrast"),)] * len(pairs))
    for one, shown in zip(pictures, seen, strict=True):
        assert (np.asarray(ImageOps.autocontrast(Image.fromarray(one))) == shown).all()


def test_pictures_of_a_few_pixels() -> None:
    for size in ((1, 1), (2, 5), (3, 3)):
        image = picture(*size, seed=1)
        for name in KNOWN:
            operation = timms.AugmentOp(name, 1.0, 6, {"translate_const": 2})
            random.seed(0)
            expected = np.asarray(operation(image)).astype(int)
            random.seed(0)
            drawn = _planned(operation)(Plan(*size)).drawn
            assert np.abs(batched([np.asarray(image)], [drawn])[0] - expected).max() <= 1, name


def pixels_of(view: Unfinished) -> np.ndarray:
    return view.pixels.permute(1, 2, 0).numpy()


def states() -> list[Any]:
    """Of the generators that views draw from."""
    return [
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"interpolation": "random", "erase": 1.0, "rand_augment": "rand-m7-n4-mstd101"},
        {"rand_augment": "original-mstd0.5", "interpolation": "bilinear"},
    ],
    ids=str,
)
@pytest.mark.parametrize("epochs", [8, pytest.param(400, marks=pytest.mark.slow)])
def test_a_view_is_drawn_as_on_the_fast_path(settings: dict[str, Any], epochs: int) -> None:
    """Its pixels are those of timm's own operations after the fast path's crop and flip."""
    transform = train_transform(Augment(**settings), Data(), SIZE)
    fast, _ = leave_unfinished(transform, "fast")
    device, _ = leave_unfinished(transform, "device")
    crop, flip, *_ = fast.steps
    augment = transform.transforms[2]
    views: list[Unfinished] = []
    expected, others = [], []
    for key in itertools.product(range(epochs), range(len(FILES))):
        picture = FILES.encoded(key[1])[0]
        with seeded(VIEW, 0, *key):
            other, after = fast(picture), states()
        with seeded(VIEW, 0, *key):
            view = device(picture)
            assert states() == after
        with seeded(VIEW, 0, *key):
            expected.append(np.asarray(augment(Image.fromarray(flip(crop(picture))))))
        for one, same in zip(view.erased, other.erased, strict=True):
            assert one[:2] == same[:2] and torch.equal(one.values, same.values)
        views.append(view)
        others.append(pixels_of(other))
    seen = batched([pixels_of(view) for view in views], [view.drawn for view in views]).astype(int)
    # One operation after another may make more of a step: solarize, for one, turns values over.
    assert (seen != expected).mean() < SHARE and np.abs(seen - expected).mean() < MEAN
    assert np.abs(seen - others).mean() < MEAN_OF_FAST
    assert sum(len(view.drawn) for view in views) > len(views) / 2


@pytest.mark.parametrize(
    "settings",
    [
        {"rand_augment": "3a"},  # it blurs, and jitter follows
        {"rand_augment": "rand-m5-n3-mstd101-t3a"},
        {"rand_augment": "augmix-m5-w2"},
        {"rand_augment": ""},
        {"interpolation": "nearest"},
    ],
    ids=str,
)
def test_what_batches_do_not_know_runs_in_the_worker(settings: dict[str, Any]) -> None:
    check_same_as_fast(train_transform(Augment(**settings), Data(), SIZE))


def test_what_stands_after_the_operations_comes_after_them() -> None:
    transform = train_transform(Augment(), Data(), SIZE)
    transform.transforms.insert(3, transforms.Grayscale(num_output_channels=3))
    check_same_as_fast(transform)


def check_same_as_fast(transform: Any) -> None:
    """Bits, and nothing left to do."""
    fast, device = (leave_unfinished(transform, path)[0] for path in ("fast", "device"))
    for key in itertools.product(range(3), range(len(FILES))):
        one, other = (
            SeededViews(FILES, early, 0, True, files=True)[key] for early in (fast, device)
        )
        assert torch.equal(one.image, other.image) and not other.drawn


def test_batches_from_workers_are_the_same_and_stay_as_they_are() -> None:
    early, finish = leave_unfinished(train_transform(Augment(), Data(), SIZE), "device")
    views = SeededViews(FILES, early, 0, True, files=True)
    keys = [[(epoch, index) for index in range(len(FILES))] for epoch in range(3)]
    stack = partial(collate, finish=finish)
    alone, worker = (list(make_loader(views, keys, count, False, stack)) for count in (0, 1))
    for one, other in zip(alone, worker, strict=True):
        first, again, elsewhere = (
            to_device(batch, CPU, torch.float32)[0] for batch in (one, one, other)
        )
        assert torch.equal(first, again) and torch.equal(first, elsewhere)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_cpus_pixels_and_nobody_waits_for_it() -> None:
    early, finish = leave_unfinished(train_transform(Augment(), Data(), SIZE), "device")
    views = SeededViews(FILES, early, 0, True, files=True)
    keys = [(epoch, index) for epoch in range(40) for index in range(len(FILES))]
    batch = next(iter(make_loader(views, [keys], 0, True, partial(collate, finish=finish))))
    expected = to_device(batch, CPU, torch.float32)[0]
    to_device(batch, torch.device("cuda"), torch.float32)  # opens what there is to open
    torch.cuda.set_sync_debug_mode("error")
    try:
        images, _ = to_device(batch, torch.device("cuda"), torch.float32)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    apart = (images.cpu() - expected).abs() > 1e-4
    assert apart.float().mean() < SHARE


def test_a_run_gets_it_by_its_setting() -> None:
    data = Data(dataset="digits", images_per_class=3, workers=0, pixels="device")
    opened = open_inputs(
        data, Augment(), image_size=16, batch_size=8, seed=0, training=True, pin_memory=False
    )
    assert opened.train is not None
    batch = next(iter(opened.train))
    assert batch.images.dtype == torch.uint8 and batch.rest is not None
    assert sum(size for _, size in batch.rest.operations.groups) > 2
