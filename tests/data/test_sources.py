"""Sources by name, the validation split where there is none, and settings that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srd.config.fields import Augment, Data
from srd.data.image_source import Opened
from srd.data.inputs import open_inputs
from srd.data.sources import SOURCES, hold_out, open_splits
from srd.errors import UserError

MakeImages = Callable[[dict[str, int]], Path]  # the fixture `make_images`
SPLITS = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}


def test_images_per_class_keeps_the_first_of_each_to_train_on(make_images: MakeImages) -> None:
    data = Data(path=str(make_images(SPLITS)), images_per_class=1)
    train, val, _ = open_splits(data, training=True)
    assert train is not None and len(val) == 2
    assert [Path(train.name(i)).parts[-2:] for i in range(len(train))] == [
        ("cat", "0.jpg"),
        ("dog", "0.jpg"),
    ]
    whole = open_splits(Data(path=data.path, images_per_class=99), training=True).train
    assert whole is not None and len(whole) == 5


@pytest.mark.parametrize(
    "val, said",
    [
        ({"val/cat": 1}, ["2 classes in train, 1 in val", "missing from val: dog"]),
        ({"val/cat": 1, "val/fox": 1}, ["missing from val: dog", "only in val: fox"]),
        ({"val/cat": 1, "val/dog": 1, "val/fox": 1}, ["2 classes in train, 3 in val", "fox"]),
        ({"train/.hidden": 1, "val/.hidden": 1}, ["hidden folder"]),
    ],
)
def test_splits_with_other_classes(
    make_images: MakeImages, val: dict[str, int], said: list[str]
) -> None:
    root = make_images({"train/cat": 1, "train/dog": 1, **val})
    with pytest.raises(UserError) as caught:
        open_splits(Data(path=str(root)), training=True)
    assert all(part in str(caught.value) for part in said)


def test_splits_with_the_same_classes(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    train, val, _ = open_splits(Data(path=str(root)), training=True)
    assert train is not None and train.classes == val.classes


def test_without_a_validation_split_a_tenth_of_every_class_is_held_out(
    make_images: MakeImages,
) -> None:
    root = make_images({"train/cat": 20, "train/dog": 11, "train/fox": 2})
    data = Data(path=str(root))
    train, val, notes = open_splits(data, training=True)
    assert train is not None
    assert np.bincount(val.targets).tolist() == [2, 1, 1] and len(train) == 29
    names = [{source.name(i) for i in range(len(source))} for source in (train, val)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 33
    assert "4 of 33 training images are held out" in notes[1]
    alone = open_splits(data, training=False)
    assert alone.train is None
    assert {alone.val.name(i) for i in range(len(alone.val))} == names[1]
    assert val.load(0)[1] == val.targets[0]


@pytest.mark.parametrize("split", [{"train/a": 20, "train/b": 20, "val/a": 4, "val/b": 4},
                                   {"train/a": 20, "train/b": 20}])  # fmt: skip
def test_what_is_selected_by_is_neither_trained_on_nor_reported(
    make_images: Callable[..., Path], split: dict[str, int]
) -> None:
    data = Data(path=str(make_images(split)))
    reported = open_splits(data, training=False).val
    train, val, notes = open_splits(replace(data, select_fraction=0.25), training=True)
    assert train is not None
    names = [{source.name(i) for i in range(len(source))} for source in (train, val, reported)]
    assert not names[0] & names[1] and not names[2] & (names[0] | names[1])
    assert len(names[0] | names[1]) == 40 - (len(names[2]) if len(split) == 2 else 0)
    assert np.bincount(val.targets).tolist() == [len(val) // 2] * 2
    assert "data.select_fraction" in notes[-1]


def test_few_images_of_a_class_are_taken_from_what_is_left() -> None:
    data = Data(dataset="digits", images_per_class=3, select_fraction=0.2)
    train, val, _ = open_splits(data, training=True)
    assert train is not None
    assert np.bincount(train.targets).tolist() == [3] * 10 and len(val) > 200
    assert not {train.name(i) for i in range(30)} & {val.name(i) for i in range(len(val))}


def test_what_is_held_out_never_moves() -> None:
    held = hold_out(np.arange(30) % 3, 0.2, ["a", "b", "c"])
    assert held.tolist() == [6, 8, 10, 11, 16, 24]


class Stripes:
    """As many pictures as a stripe is wide, of two classes."""

    def __init__(self, size: int) -> None:
        self.classes, self.targets = ["thin", "wide"], np.arange(size) % 2

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> tuple[Image.Image, int]:
        image = Image.new("RGB", (16, 16))
        image.paste("white", (0, 0, index + 1, 16))
        return image, int(self.targets[index])

    def name(self, index: int) -> str:
        return f"stripe {index}"


@pytest.mark.parametrize("own", [True, False])
def test_a_source_of_ones_own_needs_an_entry_in_the_table(
    own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_stripes(data: Data, training: bool) -> Opened:
        return Opened(Stripes(8), Stripes(4) if own else None, ["striped"])

    monkeypatch.setitem(SOURCES, "stripes", open_stripes)
    inputs = open_inputs(
        Data(dataset="stripes", workers=0),
        Augment(rand_augment=""),
        image_size=16,
        batch_size=2,
        seed=0,
        training=True,
        pin_memory=False,
    )
    assert (inputs.train_images, inputs.val_images) == ((8, 4) if own else (6, 2))
    assert inputs.class_names == ["thin", "wide"] and inputs.notes[0] == "striped"
    assert inputs.train is not None and len(list(inputs.train)) == inputs.train_images // 2


def test_the_held_out_fraction_is_a_setting(make_images: MakeImages) -> None:
    root = make_images({"train/cat": 20, "train/dog": 10})
    halves = Data(path=str(root), val_fraction=0.5, images_per_class=3)
    train, val, _ = open_splits(halves, training=True)
    assert train is not None and np.bincount(train.targets).tolist() == [3, 3]
    assert np.bincount(val.targets).tolist() == [10, 5]


@pytest.mark.parametrize(
    ("folders", "settings", "said"),
    [
        ({"train/cat": 3, "train/dog": 1}, {}, "class dog has 1 image"),
        (SPLITS, {"val_fraction": 0.2}, "data.val_fraction has no effect"),
        (SPLITS, {"image_column": "image"}, "data.image_column has no effect"),
        (SPLITS, {"dataset": "imagefoldr"}, "did you mean 'imagefolder'"),
    ],
)
def test_settings_that_do_not_fit_the_data(
    make_images: MakeImages, folders: dict[str, int], settings: dict[str, object], said: str
) -> None:
    data = Data(**{"path": str(make_images(folders)), **settings})
    with pytest.raises(UserError, match=said):
        open_splits(data, training=True)
