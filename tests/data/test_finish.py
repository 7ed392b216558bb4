"""Views in bytes that are finished in their batch: the bits of those that were finished alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchvision.transforms import Compose, ToTensor

from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.digits import DigitImages
from srd.data.finish import Unfinished, leave_unfinished
from srd.data.loader import collate, make_loader, to_device
from srd.data.views import SeededViews

CPU = torch.device("cpu")
SETTINGS: list[dict[str, Any]] = [
    {},
    {"erase": 1.0, "erase_count": 3},
    {"erase": 1.0, "erase_mode": "const"},
    {"erase": 1.0, "erase_mode": "rand"},
    {"erase": 0.0, "rand_augment": "", "color_jitter": 0.3},
]
KEYS = [(epoch, index) for epoch in range(3) for index in range(40)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_finished_at_once_has_the_bits_of_its_views(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    transform = train_transform(Augment(**settings), Data(mean=(0.1, 0.5, 0.7)), 24)
    early, finish = leave_unfinished(transform)
    assert finish is not None
    source = DigitImages("train")
    alone = collate([SeededViews(source, transform, 5, True)[key] for key in KEYS])
    views = [SeededViews(source, early, 5, True)[key] for key in KEYS]
    batch = collate(views, finish)
    assert batch.images.dtype == torch.uint8 and alone.images.dtype == torch.float32
    erased = sum(bool(view.erased) for view in views)
    assert erased == {1.0: len(KEYS), 0.0: 0}.get(settings.get("erase", -1), erased)
    assert erased or settings.get("erase") == 0
    images, targets = to_device(batch, CPU, dtype)
    assert images.dtype == dtype and torch.equal(images, alone.images.to(dtype))
    assert torch.equal(targets, alone.targets) and torch.equal(batch.keys, alone.keys)


def test_workers_hand_over_bytes_in_shared_memory() -> None:
    early, finish = leave_unfinished(train_transform(Augment(erase=0.5), Data(), 24))
    views = SeededViews(DigitImages("train"), early, 0, True)
    batches = [KEYS[:8], KEYS[8:11]]
    stack = partial(collate, finish=finish)
    alone, worker = (list(make_loader(views, batches, n, False, stack)) for n in (0, 1))
    for one, other in zip(alone, worker, strict=True):
        assert other.images.is_shared() and other.images.dtype == torch.uint8
        assert torch.equal(
            to_device(one, CPU, torch.float32)[0], to_device(other, CPU, torch.float32)[0]
        )


def test_a_broken_view_has_nothing_to_finish() -> None:
    early, finish = leave_unfinished(train_transform(Augment(), Data(), 24))

    class Broken:
        classes = ("a",)

        def __len__(self) -> int:
            return 1

        def load(self, index: int) -> Any:
            raise OSError("damaged")

        def name(self, index: int) -> str:
            return "a.jpg"

    batch = collate([SeededViews(Broken(), early, 0, True)[0, 0]], finish)
    assert batch.missing == 1 and len(batch.images) == 0


def test_another_transform_is_left_whole() -> None:
    for transform in (Compose([ToTensor()]), lambda image: image):
        assert leave_unfinished(transform) == (transform, None)
    early, _ = leave_unfinished(train_transform(Augment(), Data(), 24))
    image, _ = DigitImages("train").load(0)
    assert type(early(image)) is Unfinished
