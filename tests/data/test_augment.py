"""The training transform against one written by hand; mixing as a function of (seed, step)."""

from __future__ import annotations

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

from srd.config.fields import Augment, Data
from srd.data.augment import Mix, train_transform
from srd.data.views import seeded
from srd.errors import UserError
from tests.data.pictures import picture

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    ours, by_hand = train_transform(Augment(), Data(), 224), recipe_by_hand()
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
    randomly = train_transform(Augment(), Data(), 224).transforms[2]
    assert len(randomly.ops) == 15
    for operation in randomly.ops:
        operation.magnitude, operation.magnitude_std, operation.prob = 10, 0, 1.0
        assert operation(picture(40, 30)).size == (40, 30), operation


def test_without_augmentation_nothing_is_random() -> None:
    still = Augment(
        crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, rand_augment="", color_jitter=0, erase=0
    )
    image = picture(32, 32)
    expected = transforms.Normalize(MEAN, STD)(transforms.ToTensor()(image))
    assert torch.equal(train_transform(still, Data(), 32)(image), expected)


@pytest.mark.parametrize("policy", ["rnd-m9", "rand-z9", "nonsense"])
def test_an_unknown_policy_is_named(policy: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.rand_augment '{policy}'"):
        train_transform(Augment(rand_augment=policy), Data(), 224)


CLASSES = 10


def mixed(augment: Augment, step: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eight images and their classes before, images and targets after mixing."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(8, 3, 32, 32, generator=draw)
    classes = torch.arange(8) % CLASSES
    mix = Mix(augment, num_classes=CLASSES, seed=seed)
    return images, classes, *mix(images.clone(), classes, step)


def shares(targets: Tensor, classes: Tensor, smoothing: float = 0.1) -> Tensor:
    """How much of each image is its own, from its target."""
    smooth = targets - smoothing / CLASSES
    rows = torch.arange(len(classes))
    assert torch.allclose(targets.sum(dim=1), torch.ones(len(classes)))
    assert not torch.equal(classes, classes.flip(0))
    return smooth[rows, classes] / (1 - smoothing)


def test_mixup_blends_each_image_with_its_mirror_in_the_batch() -> None:
    mixup = Augment(cutmix=0)
    for step in range(4):
        images, classes, after, targets = mixed(mixup, step)
        own = shares(targets, classes)
        assert torch.allclose(own, own[:1].expand(8), atol=1e-6)  # one draw for the batch
        share = own[0]
        assert torch.allclose(after, share * images + (1 - share) * images.flip(0), atol=1e-5)


def test_cutmix_pastes_a_box_of_the_mirror_image() -> None:
    cutmix = Augment(mixup=0)
    for step in range(4):
        images, classes, after, targets = mixed(cutmix, step)
        kept = (after == images).all(dim=1)
        assert torch.equal(
            after.transpose(0, 1)[:, ~kept], images.flip(0).transpose(0, 1)[:, ~kept]
        )
        assert torch.allclose(shares(targets, classes), kept[0].float().mean().expand(8), atol=1e-5)


def test_mixing_is_a_function_of_seed_and_step() -> None:
    torch.manual_seed(1)
    first = [mixed(Augment(), step)[2:] for step in range(6)]
    torch.manual_seed(2)
    np.random.seed(3)
    again = [mixed(Augment(), step)[2:] for step in reversed(range(6))][::-1]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    other_seed = [mixed(Augment(), step, seed=1)[2:] for step in range(6)]
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(first, other_seed, strict=True))
    assert len({images[0].sum().item() for images, _ in first}) == 6


def test_both_kinds_of_mixing_happen() -> None:
    """With a switch of one half, and always one of the two."""
    cut = 0
    for step in range(40):
        images, _, after, _ = mixed(Augment(), step)
        assert not torch.equal(after, images) or step
        cut += bool((after == images).all(dim=1).float().mean() > 0.01)
    assert 10 < cut < 30


def test_mixing_leaves_the_runs_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    mixed(Augment(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_without_mixing_classes_pass_through() -> None:
    images, classes, after, targets = mixed(Augment(mixup=0, cutmix=0), 0)
    assert torch.equal(after, images) and torch.equal(targets, classes)
