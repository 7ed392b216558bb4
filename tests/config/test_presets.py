"""Recipes by name."""

from __future__ import annotations

import pytest

from srd.config.checks import check
from srd.config.layers import Layer
from srd.config.presets import FEW, small, warmup
from srd.config.reading import read_config


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("images", [2, 3, 40, 63, 192, 800, 4_999, 5_000, FEW, 1_281_167])
def test_small_can_be_trained_with_any_number_of_pictures(images: int, device: str) -> None:
    config = read_config([Layer("", small(images, device))])
    check(config)
    train = config.train
    assert train.batch_size <= images and train.batch_size % 2 == 0
    assert 20 <= train.epochs <= 300 and config.optim.warmup_epochs == warmup(train.epochs)
    assert config.optim.lr_batch == train.batch_size  # the rate that is told is the rate
    assert config.optim.warmup_lr < config.optim.min_lr < config.optim.lr


def test_batch_and_epochs_grow_with_the_pictures_and_with_the_machine() -> None:
    def sizes(images: int, device: str) -> tuple[int, int]:
        train = small(images, device)["train"]
        return train["batch_size"], train["epochs"]

    assert sizes(800, "cpu") == (32, 40)
    assert sizes(800, "cuda") == (32, 300)
    assert sizes(2_000, "cuda") == (64, 256)
    assert sizes(10_000, "cpu") == (64, 20)
    assert sizes(10_000, "cuda") == (256, 205)


def test_what_is_settled_is_kept_and_the_rest_follows() -> None:
    values = small(800, "cpu", batch_size=128, epochs=15)
    assert (values["train"]["batch_size"], values["train"]["epochs"]) == (128, 15)
    assert values["optim"]["warmup_epochs"] == 1.0
    assert values["optim"]["lr"] == pytest.approx(2 * small(800, "cpu")["optim"]["lr"], rel=0.02)
    assert small(800, "cpu", from_weights=True)["optim"]["lr"] == 0.00014


def test_few_pictures_are_distorted_less() -> None:
    few, more = (small(images, "cpu")["augment"] for images in (800, 8_000))
    assert few["crop_scale"][0] > more["crop_scale"][0] > 0.08
    assert few["mixup"] < more["mixup"] < 0.8
