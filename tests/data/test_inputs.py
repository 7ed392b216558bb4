"""The evaluation's transform against one written by hand; what a run reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from srd.config.fields import Augment, Data
from srd.data.inputs import Inputs, eval_transform, open_inputs
from tests.data.pictures import picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(500, 375), (333, 512), (256, 256), (150, 90)])
def test_evaluation_is_resize_256_bilinear_crop_224_pixel_for_pixel(size: tuple[int, int]) -> None:
    by_hand = transforms.Compose(
        [
            transforms.Resize(256, InterpolationMode.BILINEAR),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    image = picture(*size)
    found = eval_transform(Data(), 224)(image)
    assert found.shape == (3, 224, 224) and torch.equal(found, by_hand(image))


def test_evaluation_follows_its_settings() -> None:
    data = Data(eval_crop=1.0, eval_interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    by_hand = transforms.Compose(
        [
            transforms.Resize(64, InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    image = picture(100, 80)
    assert torch.equal(eval_transform(data, 64)(image), by_hand(image))


def opened(data: Data, training: bool, seed: int = 0) -> Inputs:
    return open_inputs(
        data,
        Augment(rand_augment=""),
        image_size=16,
        batch_size=8,
        seed=seed,
        training=training,
        pin_memory=False,
    )


def test_inputs_know_their_numbers() -> None:
    data = Data(dataset="digits", images_per_class=3, workers=0, eval_batch_size=64)
    inputs = opened(data, training=True)
    assert (inputs.num_classes, inputs.train_images, inputs.val_images) == (10, 30, 500)
    assert inputs.train_batches is not None and len(inputs.train_batches) == 3
    batches = list(inputs.val)
    assert [len(batch.targets) for batch in batches] == [64] * 7 + [52]
    assert batches[0].images.shape == (64, 3, 16, 16)
    assert inputs.notes == []


def test_evaluation_opens_no_training_images(tmp_path: Path, make_jpegs: Any) -> None:
    images = make_jpegs(tmp_path, {"val/a": 2, "val/b": 1})
    inputs = opened(Data(path=str(images), workers=0), training=False)
    assert inputs.train is None and inputs.val_images == 3 and inputs.num_classes == 2


def test_the_held_out_images_are_the_same_for_every_seed(tmp_path: Path, make_jpegs: Any) -> None:
    images = make_jpegs(tmp_path, {"train/a": 9, "train/b": 8})
    data = Data(path=str(images), workers=0)
    teacher, student, judge = opened(data, True), opened(data, True, seed=1), opened(data, False)
    assert teacher.train_images == 15 and len(teacher.notes) == 2
    batches = [next(iter(inputs.val)) for inputs in (teacher, student, judge)]
    assert all(torch.equal(batch.images, batches[0].images) for batch in batches)
    assert [len(batch.targets) for batch in batches] == [2, 2, 2]
