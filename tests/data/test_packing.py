"""`srd data pack`: the same pictures by the same numbers, whole or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from srd.commands import data as command
from srd.commands.data import run
from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.encoded import Encoded, encoded
from srd.data.finish import leave_unfinished
from srd.data.sources import open_splits
from srd.data.views import SeededViews
from srd.errors import UserError, exit_code
from tests.data.pictures import picture

pytest.importorskip("datasets", reason="the extra `datasets` is not installed")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two splits of two classes; one picture lies on its side, one is a PNG file, one is small."""
    root = tmp_path / "photos"
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            picture(90, 60, seed=number).save(root / split / name / "0.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(100, 70, seed=5).save(root / "train" / "cat" / "1.jpg", exif=exif)
    picture(50, 80, seed=6).save(root / "train" / "dog" / "1.png")
    picture(20, 30, seed=7).save(root / "train" / "dog" / "2.jpg")
    return root


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def struck() -> Callable[[int, int], None]:
        return lambda done, of: signal.raise_signal(number) if done == 3 else None

    monkeypatch.setattr(command, "_progress", struck)
    before = set(tmp_path.iterdir())
    assert exit_code(lambda: run(["pack", str(photos), str(tmp_path / "packed")])) == 128 + number
    assert set(tmp_path.iterdir()) == before
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_packed_folder_gives_the_same_views(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "packed"
    run(["pack", str(photos), str(out)])
    said = capsys.readouterr()
    assert f"7 pictures in {out}" in said.out and "packed 7 of 7 pictures" in said.err
    before, after = (open_splits(Data(path=str(path)), training=True) for path in (photos, out))
    transform, _ = leave_unfinished(train_transform(Augment(), Data(), 32))
    for old, new in ((before.train, after.train), (before.val, after.val)):
        assert old is not None and new is not None and old.classes == new.classes
        assert old.targets.tolist() == new.targets.tolist()
        for index in range(len(old)):
            one, other = encoded(old, index)[0], encoded(new, index)[0]
            assert isinstance(one, Encoded) and isinstance(other, Encoded)
            assert one.data == other.data and one.turn and other.turn
            seen = (SeededViews(source, transform, 0, True)[2, index] for source in (old, new))
            assert torch.equal(*(view.image for view in seen))
    assert after.notes == [f"validation images: split validation of {out}"]


def test_larger_pictures_are_resized_upright(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    run(["pack", str(photos), str(out), "--side", "32", "--quality", "95"])
    train = open_splits(Data(path=str(out)), training=True).train
    assert train is not None
    pictures = [train.load(index)[0] for index in range(5)]
    assert [image.size for image in pictures] == [(48, 32), (32, 46), (48, 32), (32, 51), (20, 30)]
    upright = picture(100, 70, seed=5).transpose(Image.Transpose.ROTATE_270).resize((32, 46))
    assert np.abs(np.asarray(pictures[1], float) - np.asarray(upright, float)).mean() < 8
    small = encoded(train, 4)[0]
    assert isinstance(small, Encoded)
    assert small.data == (photos / "train" / "dog" / "2.jpg").read_bytes()


def test_uncompressed_pictures_are_read_from_their_bytes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "bare"
    run(["pack", str(photos), str(out), "--side", "32", "--uncompressed"])
    train = open_splits(Data(path=str(out)), training=True).train
    assert train is not None
    for index in range(4):  # the last is small, and kept as it was
        packed, image = encoded(train, index)[0], train.load(index)[0]
        assert isinstance(packed, Encoded) and packed.bare is not None
        assert packed.size() == packed.bare.shape[:2]
        assert (packed.pixels((0, 0, 9, 9), (9, 9))[0] == np.asarray(image)).all()
        for wrong in (packed.data[:-1], packed.data[:9], b"P6\n0 0\n255\n"):
            with pytest.raises((OSError, ValueError)):
                Encoded(wrong).size()
    assert encoded(train, 4)[0].bare is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no picture", "cannot identify image file"),
        (b"\xff\xd8\xff\xe0", "cannot identify image file"),
        (b"P6 10000 10000 255 ", "10000x10000 pixels"),
        (None, "truncated"),
    ],
)
def test_a_broken_picture_leaves_nothing(
    photos: Path, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = photos / "train" / "dog" / "0.jpg"
    file.write_bytes(file.read_bytes()[:900] if content is None else content)
    with pytest.raises(UserError, match=f"cannot read {file} .*{reason}"):
        run(["pack", str(photos), str(tmp_path / "packed")])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_broken_pictures_are_left_out_and_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "train" / "dog" / "0.jpg").write_bytes(b"")
    run(["pack", str(photos), str(tmp_path / "packed"), "--skip-broken"])
    said = capsys.readouterr().out
    assert "left out: " in said and "6 pictures in" in said
    train = open_splits(Data(path=str(tmp_path / "packed")), training=True).train
    assert train is not None and train.targets.tolist() == [0, 0, 1, 1]
    for path in (photos / "val").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"validation of .* has no picture that can be read"):
        run(["pack", str(photos), str(tmp_path / "again"), "--skip-broken"])
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--side", "0"], "--side 0: from 1 to"),
        (["--side", "8", "--quality", "101"], "--quality 101: from 1 to 100"),
        (["--quality", "80"], "--quality has no effect without --side"),
        (["--uncompressed"], "--uncompressed needs --side, and goes without --quality"),
        (["--dataset", "imagefolders"], "is unknown.*imagefolder"),
        (["--sise", "8"], "unknown argument --sise.*--side"),
    ],
)
def test_wrong_flags(photos: Path, tmp_path: Path, flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(["pack", str(photos), str(tmp_path / "out"), *flags])


def test_what_is_there_is_left_alone(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for out in ("out", "dangling"):
        assert exit_code(lambda out=out: run(["pack", str(photos), str(tmp_path / out)])) == 2
        assert "exists already" in capsys.readouterr().err
    assert not os.listdir(tmp_path / "out")


def test_a_disk_that_is_full_leaves_nothing(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .* \(No space left on device\)"):
        run(["pack", str(photos), str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_pictures_that_are_no_files_are_packed_without_loss(tmp_path: Path) -> None:
    run(["pack", "", str(tmp_path / "out"), "--dataset", "digits"])
    packed = open_splits(Data(path=str(tmp_path / "out")), training=True).train
    digits = open_splits(Data(dataset="digits"), training=True).train
    assert packed is not None and digits is not None and len(packed) == len(digits)
    for index in range(0, len(digits), 100):
        assert packed.load(index)[1] == digits.load(index)[1]
        assert packed.load(index)[0].tobytes() == digits.load(index)[0].tobytes()
