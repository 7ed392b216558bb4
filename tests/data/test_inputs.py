"""Transforms against a pipeline written by hand; mixing as a function of (seed, step)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from srd.config.fields import Augment, Config, Data, Model, Train
from srd.data import augment, inputs
from srd.data.views import seeded
from srd.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def eval_transform(config: Config) -> Any:
    return inputs.eval_transform(config.data, config.model.image_size)


def train_transform(config: Config) -> Any:
    return augment.train_transform(config.augment, config.data, config.model.image_size)


def open_inputs(config: Config, training: bool) -> Any:
    return inputs.open_inputs(
        config.data,
        config.augment,
        image_size=config.model.image_size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        training=training,
        pin_memory=False,
    )


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with noise on them."""
    draw = np.random.RandomState(seed)
    coarse = draw.randint(0, 256, (5, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC), np.int16)
    noisy = smooth + draw.randint(-20, 20, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


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
    found = eval_transform(Config())(image)
    assert found.shape == (3, 224, 224) and torch.equal(found, by_hand(image))


def test_evaluation_follows_its_settings() -> None:
    data = Data(eval_crop=1.0, eval_interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    config = Config(model=Model(image_size=64), data=data)
    by_hand = transforms.Compose(
        [
            transforms.Resize(64, InterpolationMode.BICUBIC),
            transforms.CenterCrop(64),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    image = picture(100, 80)
    assert torch.equal(eval_transform(config)(image), by_hand(image))


def recipe_by_hand() -> Any:
    """The design's training transform from its parts."""
    fill = tuple(round(255 * value) for value in MEAN)
    randomly = rand_augment_transform(
        "rand-m9-mstd0.5-inc1",
        {"translate_const": int(224 * 0.45), "img_mean": fill, "interpolation": Image.BICUBIC},
    )
    return transforms.Compose(
        [
            RandomResizedCropAndInterpolation(224, (0.08, 1), (3 / 4, 4 / 3), "bicubic"),
            transforms.RandomHorizontalFlip(0.5),
            randomly,
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
            RandomErasing(0.25, mode="pixel", max_count=1, device="cpu"),
        ]
    )


def test_training_is_the_recipes_transform() -> None:
    ours, by_hand = train_transform(Config()), recipe_by_hand()
    erase = by_hand.transforms.pop()
    erased = 0
    for index in range(40):
        with seeded(index):
            found = ours(picture(280, 240, index))
        with seeded(index):
            whole = by_hand(picture(280, 240, index))
            expected = erase(whole.clone())
        assert torch.equal(found, expected)
        assert found.shape == (3, 224, 224) and found.dtype == torch.float32
        erased += not torch.equal(expected, whole)
    assert 4 <= erased <= 18  # of 40, with probability 0.25


def test_every_augmentation_works_at_its_strongest() -> None:
    """Magnitude 9 is drawn with deviation 0.5 and cut at 10: at 10, one keeps 0 bits of a colour."""
    randomly = train_transform(Config()).transforms[2]
    assert len(randomly.ops) == 15
    for operation in randomly.ops:
        operation.magnitude, operation.magnitude_std, operation.prob = 10, 0, 1.0
        assert operation(picture(40, 30)).size == (40, 30), operation


def test_without_augmentation_nothing_is_random() -> None:
    still = Augment(
        crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, rand_augment="", color_jitter=0, erase=0
    )
    config = Config(model=Model(image_size=32), augment=still)
    image = picture(32, 32)
    expected = transforms.Normalize(MEAN, STD)(transforms.ToTensor()(image))
    assert torch.equal(train_transform(config)(image), expected)


@pytest.mark.parametrize("policy", ["rnd-m9", "rand-z9", "nonsense"])
def test_an_unknown_policy_is_named(policy: str) -> None:
    config = Config(augment=Augment(rand_augment=policy))
    with pytest.raises(UserError, match=rf"augment\.rand_augment '{policy}'"):
        train_transform(config)


CLASSES = 10


def mixed(config: Config, step: int, batch: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and classes before, images and targets after mixing."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(batch, 3, 32, 32, generator=draw)
    classes = torch.arange(batch) % CLASSES
    return (
        images,
        classes,
        *augment.Mix(config.augment, num_classes=CLASSES, seed=config.seed)(
            images.clone(), classes, step
        ),
    )


def shares(targets: Tensor, classes: Tensor, smoothing: float = 0.1) -> Tensor:
    """How much of each image is its own, from its target."""
    smooth = targets - smoothing / CLASSES
    rows = torch.arange(len(classes))
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(classes)))
    assert not torch.equal(classes, classes.flip(0))
    return smooth[rows, classes] / (1 - smoothing)


def test_mixup_blends_each_image_with_its_mirror_in_the_batch() -> None:
    config = Config(augment=Augment(cutmix=0))
    for step in range(4):
        images, classes, after, targets = mixed(config, step)
        own = shares(targets, classes)
        assert torch.allclose(own, own[:1].expand(8), atol=1e-6)  # one draw for the batch
        share = own[0]
        assert torch.allclose(after, share * images + (1 - share) * images.flip(0), atol=1e-5)


def test_cutmix_pastes_a_box_of_the_mirror_image() -> None:
    config = Config(augment=Augment(mixup=0))
    for step in range(4):
        images, classes, after, targets = mixed(config, step)
        kept = (after == images).all(dim=1)
        assert torch.equal(
            after.transpose(0, 1)[:, ~kept], images.flip(0).transpose(0, 1)[:, ~kept]
        )
        assert torch.allclose(shares(targets, classes), kept[0].float().mean().expand(8), atol=1e-5)


def test_mixing_is_a_function_of_seed_and_step() -> None:
    config = Config()
    torch.manual_seed(1)
    first = [mixed(config, step)[2:] for step in range(6)]
    torch.manual_seed(2)
    np.random.seed(3)
    again = [mixed(config, step)[2:] for step in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    other_seed = [mixed(replace(config, seed=1), step)[2:] for step in range(6)]
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, other_seed, strict=True))
    assert len({images[0].sum().item() for images, _ in first}) == 6


def test_both_kinds_of_mixing_happen() -> None:
    """With a switch of one half, and always one of the two."""
    cut = 0
    for step in range(40):
        images, _, after, _ = mixed(Config(), step)
        assert not torch.equal(after, images) or step
        cut += bool((after == images).all(dim=1).float().mean() > 0.01)
    assert 10 < cut < 30


def test_mixing_leaves_the_runs_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed(Config(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_without_mixing_classes_pass_through() -> None:
    images, classes, after, targets = mixed(Config(augment=Augment(mixup=0, cutmix=0)), 0)
    assert torch.equal(after, images) and torch.equal(targets, classes)


def digits(**train: Any) -> Config:
    data = Data(dataset="digits", images_per_class=3, workers=0, eval_batch_size=64)
    return Config(
        data=data,
        model=Model(image_size=16),
        augment=Augment(rand_augment=""),
        train=Train(**train),
    )


def test_inputs_know_their_numbers() -> None:
    opened = open_inputs(digits(batch_size=8), training=True)
    assert (opened.num_classes, opened.train_images, opened.val_images) == (10, 30, 500)
    assert opened.train_batches is not None and len(opened.train_batches) == 3
    batches = list(opened.val)
    assert [len(batch.targets) for batch in batches] == [64] * 7 + [52]
    assert batches[0].images.shape == (64, 3, 16, 16)


def test_evaluation_opens_no_training_images(tmp_path: Path, make_jpegs: Any) -> None:
    images = make_jpegs(tmp_path, {"val/a": 2, "val/b": 1})
    config = Config(data=Data(path=str(images), workers=0))
    opened = open_inputs(config, training=False)
    assert opened.train is None and opened.val_images == 3 and opened.num_classes == 2
