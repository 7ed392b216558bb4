"""Image folders and the embedded digits: what they hold, and what is said when they do not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srd.config.fields import Data
from srd.data.digits import DigitImages
from srd.data.folder_images import FolderImages
from srd.data.sources import check_same_classes, open_splits
from srd.errors import UserError

MakeImages = Callable[[dict[str, int]], Path]  # the fixture `make_images`
SPLITS = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 1}


def test_folder_holds_every_image_with_its_class(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    images = FolderImages(root, "train")
    assert images.classes == ["cat", "dog"]
    assert [images.load(i)[1] for i in range(len(images))] == [0, 0, 0, 1, 1]
    assert Path(images.name(3)) == root / "train/dog/0.jpg"
    with Image.open(root / "train/cat/1.jpg") as file:
        assert np.array_equal(np.asarray(images.load(1)[0]), np.asarray(file))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_come_as_rgb(make_images: MakeImages, mode: str) -> None:
    root = make_images(SPLITS)
    Image.new(mode, (5, 4)).save(root / "train/cat" / ("a.tif" if mode == "CMYK" else "a.png"))
    images = FolderImages(root, "train")
    assert len(images) == 6
    assert all(images.load(i)[0].mode == "RGB" for i in range(len(images)))


def test_per_class_keeps_the_first_of_each(make_images: MakeImages) -> None:
    images = FolderImages(make_images(SPLITS), "train", per_class=1)
    assert [Path(images.name(i)).parts[-2:] for i in range(len(images))] == [
        ("cat", "0.jpg"),
        ("dog", "0.jpg"),
    ]


def test_per_class_beyond_what_is_there_keeps_all(make_images: MakeImages) -> None:
    assert len(FolderImages(make_images(SPLITS), "train", per_class=99)) == 5


def test_files_that_are_no_images_are_not_counted(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    (root / "train/cat/notes.txt").write_text("not an image")
    assert len(FolderImages(root, "train")) == 5


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        FolderImages(tmp_path / "nowhere", "train")
    said = str(caught.value)
    assert str(tmp_path / "nowhere/train") in said
    assert "--data-path" in said and "--dataset digits" in said


def test_a_missing_split_is_named(make_images: MakeImages) -> None:
    root = make_images({"train/cat": 1})
    with pytest.raises(UserError, match=f"{root}/val/<class>/<image>"):
        FolderImages(root, "val")


def test_no_path_at_all() -> None:
    with pytest.raises(UserError, match=r"--data-path.*--dataset digits"):
        open_splits(Data(), training=True)


def test_no_class_folders(make_images: MakeImages) -> None:
    root = make_images({"train": 2})
    with pytest.raises(UserError, match=r"train has no class folders: expected .*<class>/<image>"):
        FolderImages(root, "train")


def test_empty_class_folders_are_named(make_images: MakeImages) -> None:
    root = make_images({**SPLITS, "train/ant": 0})
    with pytest.raises(UserError, match=f"no images in {root}/train/ant"):
        FolderImages(root, "train")
    make_images({"train/bee": 0})
    with pytest.raises(UserError, match="train/ant and 1 other"):
        FolderImages(root, "train")


@pytest.mark.parametrize(
    "val, said",
    [
        ({"val/cat": 1}, ["2 classes in train, 1 in val", "missing from val: dog"]),
        ({"val/cat": 1, "val/fox": 1}, ["missing from val: dog", "only in val: fox"]),
        ({"val/cat": 1, "val/dog": 1, "val/fox": 1}, ["2 classes in train, 3 in val", "fox"]),
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
    check_same_classes(FolderImages(root, "train"), FolderImages(root, "val"))


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
    assert "4 of 33 images are held out" in notes[0]
    alone = open_splits(data, training=False)
    assert alone.train is None
    assert {alone.val.name(i) for i in range(len(alone.val))} == names[1]
    assert val.load(0)[1] == val.targets[0]


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
