"""Hugging Face data sets, saved by the test itself: columns, splits, pictures, mistakes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from srd.config.fields import Data
from srd.data.sources import open_splits
from srd.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")


def rows(count: int, **columns: Any) -> Any:
    """`count` grey pictures, the number in every pixel, of the classes cat and dog in turn."""
    pictures = [Image.fromarray(np.full((6, 5), number, np.uint8)) for number in range(count)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        | {name: datasets.Value("int64") for name in columns}
    )
    values = {"image": pictures, "label": [number % 2 for number in range(count)], **columns}
    return datasets.Dataset.from_dict(values, features=features)


def saved(folder: Path, **splits: Any) -> Data:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return Data(dataset="datasets", path=str(folder))


def test_splits_have_their_pictures_classes_and_names(tmp_path: Path) -> None:
    train, val, notes = open_splits(
        saved(tmp_path / "d", train=rows(6), validation=rows(4)), training=True
    )
    assert train is not None and (len(train), len(val), notes) == (6, 4, [])
    assert train.classes == val.classes == ["cat", "dog"]
    assert train.targets.tolist() == [0, 1] * 3
    image, target = pickle.loads(pickle.dumps(train)).load(3)  # as a loader's worker gets it
    assert (image.mode, image.size, image.getpixel((0, 0)), target) == ("RGB", (5, 6), (3,) * 3, 1)
    assert train.name(3).startswith("row 3 of ")


def test_one_split_alone_is_split(tmp_path: Path) -> None:
    rows(20).save_to_disk(str(tmp_path / "d"))
    data = Data(dataset="datasets", path=str(tmp_path / "d"), images_per_class=2)
    train, val, notes = open_splits(data, training=True)
    assert train is not None and (len(train), len(val), len(notes)) == (4, 2, 1)


def test_the_columns_can_be_named(tmp_path: Path) -> None:
    data = saved(tmp_path / "d", train=rows(6, kind=[0, 1, 2] * 2), test=rows(3, kind=[0, 1, 2]))
    data.label_column = "kind"
    train, _, _ = open_splits(data, training=True)
    assert train is not None and train.classes == ["0", "1", "2"]
    assert train.targets.tolist() == [0, 1, 2] * 2


@pytest.mark.parametrize(
    ("columns", "named", "said"),
    [
        (["label"], {}, "no label column; name it: --set data.label_column"),
        (["image"], {}, "no image column"),
        ([], {"image_column": "picture"}, "no column 'picture': it has image, label"),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, columns: list[str], named: dict[str, str], said: str
) -> None:
    data = saved(tmp_path / "d", train=rows(4).remove_columns(columns), test=rows(4))
    with pytest.raises(UserError, match=said):
        open_splits(Data(dataset="datasets", path=data.path, **named), training=True)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set --data-path"):
        open_splits(Data(dataset="datasets"), training=True)
    with pytest.raises(UserError, match="is no data set"):
        open_splits(Data(dataset="datasets", path=str(tmp_path)), training=True)
    with pytest.raises(UserError, match="has no split train"):
        open_splits(saved(tmp_path / "d", test=rows(4)), training=True)
