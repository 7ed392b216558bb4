"""The embedded digits: always the same images in the same two parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from srd.config.fields import Data
from srd.data.digits import DigitImages
from srd.data.sources import open_splits
from srd.errors import UserError


def content(images: DigitImages) -> list[tuple[bytes, int]]:
    loaded = [images.load(i) for i in range(len(images))]
    return [(image.tobytes(), target) for image, target in loaded]


def fingerprint(images: DigitImages) -> str:
    return hashlib.sha256(repr(content(images)).encode()).hexdigest()[:16]


def test_the_digits_never_move() -> None:
    assert fingerprint(DigitImages("train")) == "abd074a28b240f63"
    assert fingerprint(DigitImages("val")) == "29c31f19b1577900"
    assert fingerprint(DigitImages("train", per_class=10)) == "a9f7ddecd62ea7ed"


def test_the_digits_are_split_in_two_parts() -> None:
    train, val = DigitImages("train"), DigitImages("val")
    assert (len(train), len(val)) == (1297, 500)
    names = [part.name(i) for part in (train, val) for i in range(len(part))]
    assert len(set(names)) == 1797
    assert train.classes == val.classes == [str(digit) for digit in range(10)]
    assert np.bincount([target for _, target in content(val)]).tolist() == [50] * 10


def test_digits_per_class_are_training_images() -> None:
    few = DigitImages("train", per_class=7)
    assert np.bincount([target for _, target in content(few)]).tolist() == [7] * 10
    assert set(content(few)) <= set(content(DigitImages("train")))
    assert len(open_splits(Data(dataset="digits", images_per_class=7), training=True).train) == 70


def test_a_digit_is_an_rgb_image_with_all_seventeen_grey_levels() -> None:
    digits = DigitImages("train")
    image, _ = digits.load(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    seen = {value for pixels, _ in content(digits) for value in pixels}
    assert seen == {round(level * 255 / 16) for level in range(17)}


@pytest.mark.parametrize("setting", [{"path": "/photos"}, {"val_fraction": 0.1}])
def test_what_the_digits_do_not_read_is_refused(setting: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(setting))} has no effect"):
        open_splits(Data(dataset="digits", **setting), training=True)


@pytest.mark.slow
def test_nothing_but_the_digits_imports_scikit_learn(run_python: Callable[..., str]) -> None:
    said = run_python("-c", "import sys, srd.data.inputs; print('sklearn' in sys.modules)")
    assert said.strip() == "False"
