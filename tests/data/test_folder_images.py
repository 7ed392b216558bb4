"""Image folders: what they hold, and what is said when they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from srd.config.fields import Data
from srd.data.folder_images import FolderImages, open_folder
from srd.data.sources import open_splits
from srd.data.views import SeededViews
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


def test_files_that_are_no_pictures_by_name_are_counted_and_told(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    for name in ("notes.txt", "more.TXT", "._0.jpg", "readme"):
        (root / "train/cat" / name).write_text("not an image")
    (root / "train/cat/.ipynb_checkpoints").mkdir()
    (root / "train/cat/.ipynb_checkpoints/0.jpg").write_text("a copy that nobody means")
    train, _, notes = open_splits(Data(path=str(root)), training=True)
    assert train is not None and len(train) == 5
    note, _ = notes
    told = "2 hidden, 2 .txt, 1 without a suffix (pictures are .jpg "
    assert note.startswith(f"left out of {root}/train: {told}"), note


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".JPG"])
def test_pictures_of_other_suffixes_are_read(make_images: MakeImages, suffix: str) -> None:
    root = make_images(SPLITS)
    kind = "GIF" if suffix == ".gif" else "JPEG"
    Image.new("RGB", (5, 4), (255, 0, 0)).save(root / f"train/cat/0{suffix}", format=kind)
    images = FolderImages(root, "train")
    assert len(images) == 6 and images.notes == []
    assert images.load(0)[0].size == (5, 4)


def test_a_class_of_other_files_alone_is_told_by_suffix(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    (root / "train/fox").mkdir()
    (root / "train/fox/0.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"no images in .*fox.*left out: 1 \.heic"):
        FolderImages(root, "train")


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


def test_class_folders_alone_are_for_training(make_images: MakeImages) -> None:
    root = make_images({"cat": 12, "dog": 3})
    train, val, notes = open_splits(Data(path=str(root)), training=True)
    assert train is not None and train.classes == val.classes == ["cat", "dog"]
    assert np.bincount(train.targets).tolist() == [11, 2]
    assert np.bincount(val.targets).tolist() == [1, 1]
    assert Path(val.name(0)).parent == root / "cat" and "held out" in notes[1]


@pytest.mark.parametrize(
    "folders", [{"photos/train/cat": 1, "photos/val/cat": 1}, {"one": 0, "two": 0}]
)
def test_a_folder_of_something_else_is_no_data(
    make_images: MakeImages, folders: dict[str, int]
) -> None:
    root = make_images(folders)
    with pytest.raises(UserError, match=f"no images at {root}: looked for {root}/train/<class>"):
        open_folder(Data(path=str(root)), True)


def test_pictures_without_classes_are_told_of_unlabelled(make_images: MakeImages) -> None:
    root = make_images({"flat": 2}) / "flat"
    with pytest.raises(
        UserError, match=r"looked for .*; pictures without classes .* --unlabelled$"
    ):
        open_folder(Data(path=str(root)), True)


def test_training_needs_more_than_a_validation_split(make_images: MakeImages) -> None:
    data = Data(path=str(make_images({"val/cat": 2})))
    assert len(open_splits(data, training=False).val) == 2
    with pytest.raises(UserError, match=r"looked for .*/train/<class>/<image>"):
        open_splits(data, training=True)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_pictures_of_16_bits_keep_their_upper_8(make_images: MakeImages, suffix: str) -> None:
    root = make_images(SPLITS)
    values = np.random.RandomState(0).randint(0, 65_536, (9, 7)).astype(np.uint16)
    file = root / f"train/cat/sixteen{suffix}"
    Image.fromarray(values).save(file)
    images = FolderImages(root, "train")
    image, _ = images.load([images.name(i) for i in range(6)].index(str(file)))
    assert np.array_equal(np.asarray(image), np.repeat((values >> 8)[..., None], 3, axis=2))


def test_pictures_of_numbers_without_a_range_are_refused(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    file = root / "train/cat/float.tif"
    Image.fromarray(np.zeros((9, 7), np.float32)).save(file)
    images = FolderImages(root, "train")
    with pytest.raises(ValueError, match="32-bit numbers without a known range"):
        images.load([images.name(i) for i in range(6)].index(str(file)))


def test_links_that_lead_in_circles(make_images: MakeImages) -> None:
    """With two of them, walking along every link would never end."""
    root = make_images(SPLITS)
    plain = [images.name(i) for images in [FolderImages(root, "train")] for i in range(len(images))]
    for name in ("cat", "dog"):
        (root / "train" / name / "up").symlink_to("..")
        (root / "train" / name / "self").symlink_to(".")
    images = FolderImages(root, "train")
    assert [images.name(i) for i in range(len(images))] == plain


def test_links_to_pictures_elsewhere_are_followed_once(
    make_images: MakeImages, tmp_path: Path
) -> None:
    root = make_images({**SPLITS, "more/deep": 2})
    for link in ("a", "b"):
        (root / "train/cat" / link).symlink_to(root / "more")
    names = [images.name(i) for images in [FolderImages(root, "train")] for i in range(len(images))]
    assert [Path(name).relative_to(root / "train").as_posix() for name in names] == [
        "cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "cat/a/deep/0.jpg", "cat/a/deep/1.jpg",
        "dog/0.jpg", "dog/1.jpg",
    ]  # fmt: skip


def test_a_name_with_line_breaks_is_told_on_one_line(make_images: MakeImages) -> None:
    root = make_images(SPLITS)
    (root / "train/cat/a\n\x1b[2J.png").write_bytes(b"no picture")
    images = FolderImages(root, "train")
    views = SeededViews(images, lambda image: image, seed=0, substitute=False)
    (broken,) = views[0, 3].broken
    assert (
        broken.startswith(f"{root}/train/cat/a\\n\\x1b[2J.png (cannot identify")
        and broken.isprintable()
    )
