"""Hugging Face data sets, saved by the test itself: columns, splits, pictures, mistakes."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from srd.config.fields import Augment, Data
from srd.data.inputs import open_inputs
from srd.data.sources import open_splits
from srd.errors import UserError

datasets = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")

MakeImages = Callable[[dict[str, int]], Path]  # the fixture `make_images`
INT, REAL, TEXT = (datasets.Value(name) for name in ("int64", "float32", "string"))
CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is written outside the test's folder, and nobody is asked."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def rows(count: int, **columns: tuple[Any, list[Any]]) -> Any:
    """`count` grey pictures, the number in every pixel, of the classes cat and dog in turn."""
    pictures = [Image.fromarray(np.full((6, 5), number, np.uint8)) for number in range(count)]
    columns = {
        "image": (datasets.Image(), pictures),
        "label": (CLASSES, [number % 2 for number in range(count)]),
        **columns,
    }
    features = datasets.Features({name: kind for name, (kind, _) in columns.items()})
    return datasets.Dataset.from_dict(
        {name: values for name, (_, values) in columns.items()}, features=features
    )


def saved(folder: Path, settings: dict[str, Any] | None = None, **splits: Any) -> Data:
    datasets.DatasetDict(splits).save_to_disk(str(folder / "d"))
    return Data(dataset="datasets", path=str(folder / "d"), **(settings or {}))


def test_splits_have_their_pictures_classes_and_names(tmp_path: Path) -> None:
    data = saved(tmp_path, train=rows(6), validation=rows(4), test=rows(2))
    train, val, notes = open_splits(data, training=True)
    assert train is not None and (len(train), len(val)) == (6, 4)
    assert notes == [f"validation images: split validation of {data.path}"]
    assert train.classes == val.classes == ["cat", "dog"]
    assert train.targets.tolist() == [0, 1] * 3 and train.targets.dtype == np.int64
    image, target = pickle.loads(pickle.dumps(train)).load(3)  # as a loader's worker gets it
    assert (image.mode, image.size, image.getpixel((0, 0)), target) == ("RGB", (5, 6), (3,) * 3, 1)
    assert train.name(3) == f"row 3 of {data.path}, split train"


@pytest.mark.parametrize("name", ["val", "test"])
def test_which_split_is_measured_on_is_told(tmp_path: Path, name: str) -> None:
    data = saved(tmp_path, **{name: rows(4)})
    train, val, notes = open_splits(data, training=False)
    assert train is None and len(val) == 4 and f"split {name} of" in notes[0]


def test_one_table_is_split(tmp_path: Path) -> None:
    rows(20).save_to_disk(str(tmp_path / "d"))
    data = Data(dataset="datasets", path=str(tmp_path / "d"), images_per_class=2)
    train, val, notes = open_splits(data, training=True)
    assert train is not None and (len(train), len(val)) == (4, 2)
    assert len(notes) == 1 and "2 of 20 training images are held out" in notes[0]


def test_loaders_read_it_in_their_workers(tmp_path: Path) -> None:
    inputs = open_inputs(
        saved(tmp_path, {"workers": 1, "mean": (0,) * 3, "std": (1,) * 3}, test=rows(8)),
        Augment(),
        image_size=8,
        batch_size=2,
        seed=0,
        training=False,
        pin_memory=False,
    )
    [batch] = inputs.val
    assert batch.targets.tolist() == [0, 1] * 4
    grey = torch.arange(8)[:, None, None, None].expand(8, 3, 8, 8) / 255
    assert torch.allclose(batch.images, grey, atol=1e-6)


def test_folders_and_parquet_files_are_read(tmp_path: Path, make_images: MakeImages) -> None:
    folder = make_images({"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 2})
    broken = folder / "train/cat/0.jpg"
    broken.write_bytes(b"not a picture")
    train, val, _ = open_splits(Data(dataset="datasets", path=str(folder)), training=True)
    assert train is not None and train.classes == ["cat", "dog"]
    assert (train.targets.tolist(), val.targets.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 1])
    with pytest.raises(OSError, match=r"cat/0\.jpg"):
        train.load(0)
    (tmp_path / "p").mkdir()
    rows(6).to_parquet(str(tmp_path / "p/train.parquet"))
    train, val, _ = open_splits(
        Data(dataset="datasets", path=str(tmp_path / "p"), val_fraction=0.3), training=True
    )
    assert train is not None and train.classes == ["cat", "dog"]
    seen = [s.load(i)[0].getpixel((0, 0))[0] for s in (train, val) for i in range(len(s))]
    assert sorted(seen) == list(range(6))


def test_numbers_named_as_labels_are_classes_in_every_split(tmp_path: Path) -> None:
    train = rows(6, kind=(INT, [0, 1, 2] * 2))
    data = saved(tmp_path, {"label_column": "kind"}, train=train, test=rows(2, kind=(INT, [1, 0])))
    train, val, _ = open_splits(data, training=True)
    assert train is not None and train.classes == val.classes == ["0", "1", "2"]
    assert train.targets.tolist() == [0, 1, 2] * 2 and val.targets.tolist() == [1, 0]


def test_the_image_column_can_be_named(tmp_path: Path) -> None:
    mirror = (datasets.Image(), [Image.new("L", (9, 9))] * 4)
    data = saved(tmp_path, {"image_column": "mirror"}, test=rows(4, mirror=mirror))
    assert open_splits(data, training=False).val.load(0)[0].size == (9, 9)


def test_a_row_without_a_picture_is_broken(tmp_path: Path) -> None:
    pictures = (datasets.Image(), [None, Image.new("L", (5, 5))])
    val = open_splits(saved(tmp_path, test=rows(2, image=pictures)), training=False).val
    with pytest.raises(OSError, match="no image"):
        val.load(0)
    assert val.load(1)[1] == 1


@pytest.mark.parametrize(
    ("settings", "columns", "said"),
    [
        ({}, {"label": (INT, [0, 1])}, r"no label column; .*label_column=\.\.\. .*: label$"),
        ({}, {"label": (TEXT, ["a", "b"])}, r"no label column; .*: none fits"),
        ({}, {"coarse": (CLASSES, [0, 1])}, r"several label columns; .*: label, coarse$"),
        ({}, {"image": (TEXT, ["a", "b"])}, "no image column; .*image_column"),
        ({"image_column": "label"}, {}, "no image column 'label'; .* one of: image$"),
        ({"label_column": "tag"}, {"tag": (TEXT, ["a", "b"])}, "no label column 'tag'"),
        ({"label_column": "tag"}, {"tag": (REAL, [0.0, 1.0])}, "no label column 'tag'"),
        ({"label_column": "tag"}, {"tag": (INT, [0, 7])}, "column tag has numbers up to 7"),
        ({"label_column": "tag"}, {"tag": (INT, [0, None])}, "split test: .*without a label"),
        ({}, {"label": (CLASSES, [0, -1])}, "split test: .*without a label"),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, settings: dict[str, str], columns: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        open_splits(saved(tmp_path, settings, test=rows(2, **columns)), training=False)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    def refused(path: str | None) -> str:
        with pytest.raises(UserError) as caught:
            open_splits(Data(dataset="datasets", path=path), training=True)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        return str(caught.value)

    assert "set --data-path" in refused(None)
    (tmp_path / "empty").mkdir()
    assert refused(str(tmp_path / "empty")).startswith(f"{tmp_path}/empty is no data set")
    assert "no folder, and no data set" in refused(str(tmp_path / "nowhere"))
    assert "the Hub cannot be reached" in refused("someone/pictures")
    (tmp_path / "file.parquet").write_bytes(b"")
    assert "set --data-path to its folder" in refused(str(tmp_path / "file.parquet"))
    data = saved(tmp_path, test=rows(4))
    assert "has no split train: it has test" in refused(data.path)


@pytest.mark.parametrize("change", ["length", "cut", "elsewhere", "twice", "pipe", "class 1"])
def test_a_saved_data_set_from_anybody(tmp_path: Path, change: str) -> None:
    """Arrow believes a file's numbers: some end the process, so they are looked over first."""
    data = saved(tmp_path, train=rows(4), validation=rows(4))
    folder = tmp_path / "d/train"
    (rows_file,) = folder.glob("*.arrow")
    content = rows_file.read_bytes()
    names = [rows_file.name]
    if change == "length":  # of a column: 4, in the description of the only batch
        at = content.rindex((4).to_bytes(8, "little"))
        rows_file.write_bytes(content[:at] + b"\0\0\0\0\0\0\0\xff" + content[at + 8 :])
    elif change == "cut":
        rows_file.write_bytes(content[: len(content) // 2])
    elif change == "elsewhere":
        names = [f"../validation/{rows_file.name}"]
    elif change == "twice":
        names *= 2
    elif change == "pipe":
        rows_file.unlink()
        os.mkfifo(rows_file)
    else:
        info = folder / "dataset_info.json"
        info.write_text(info.read_text().replace('"cat"', "1"))
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"is no data set|no text"):
        open_splits(data, training=True)


def test_code_that_comes_with_the_data_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "pictures.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="no data set"):
        open_splits(Data(dataset="datasets", path=str(folder)), training=True)
    assert not (tmp_path / "ran").exists()


def test_without_the_package_its_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("srd.installed.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'simple-recipe-distillation\[datasets\]'"):
        open_splits(Data(dataset="datasets", path="d"), training=True)


def test_pictures_are_read_as_the_library_reads_them_and_by_our_list(tmp_path: Path) -> None:
    turned, eps = tmp_path / "turned.jpg", tmp_path / "x.jpg"
    picture = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(8, 10, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    picture.save(turned, exif=exif)
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    features = datasets.Features(image=datasets.Image(mode="L"), label=CLASSES)
    table = datasets.Dataset.from_dict(
        {"image": [str(turned), str(eps)], "label": [0, 1]}, features=features
    )
    _, val, _ = open_splits(saved(tmp_path, train=table, test=table), training=False)
    expected = table[0]["image"].convert("RGB")
    assert expected.size == (8, 10)
    assert np.array_equal(np.asarray(val.load(0)[0]), np.asarray(expected))
    with pytest.raises(OSError, match="cannot identify"):
        val.load(1)
