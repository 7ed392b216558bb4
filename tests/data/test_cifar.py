"""CIFAR from files of its binary format, made here; and the pairs of configs/cifar100 on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deit import main as deit
from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.sources import open_splits
from srd.errors import UserError
from srd.run.log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
PAIRS = sorted(
    path.name
    for path in (ROOT / "configs/cifar100").glob("*.yaml")
    if not path.name.startswith("teacher")
)


def write_records(file: Path, labels: list[list[int]]) -> np.ndarray:
    """Records of these labels and random pixels (N, 3, 32, 32), which are returned."""
    pixels = (
        np.random.RandomState(len(labels)).randint(0, 256, (len(labels), 3072)).astype(np.uint8)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(np.hstack([np.array(labels, np.uint8), pixels]).tobytes())
    return pixels.reshape(-1, 3, 32, 32)


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    """Sixteen training pictures, eight to measure with; coarse labels that nobody reads."""
    folder = tmp_path / "cifar-100-binary"
    write_records(folder / "train.bin", [[7, label * 6] for label in range(16)])
    write_records(folder / "test.bin", [[9, label * 12] for label in range(8)])
    (folder / "fine_label_names.txt").write_text("".join(f"class {n}\n" for n in range(100)))
    return tmp_path


def test_both_splits_by_their_fine_classes(cifar100: Path) -> None:
    for path in (cifar100, cifar100 / "cifar-100-binary"):
        splits = open_splits(Data(dataset="cifar100", path=str(path)), training=True)
        assert splits.train is not None
        assert splits.train.targets.tolist() == [label * 6 for label in range(16)]
        assert splits.val.targets.tolist() == [label * 12 for label in range(8)]
        assert splits.val.classes == [f"class {n}" for n in range(100)]
        assert splits.train.name(3) == "cifar-100-binary picture 3"


def test_pixels_are_channel_by_channel_row_by_row(tmp_path: Path) -> None:
    folder, pixels = tmp_path / "cifar-10-batches-bin", []
    for number in range(1, 6):
        pixels.append(write_records(folder / f"data_batch_{number}.bin", [[number], [0]]))
    write_records(folder / "test_batch.bin", [[9]])
    (folder / "batches.meta.txt").write_text("\n".join(f"class {n}" for n in range(10)) + "\n\n")
    train = open_splits(Data(dataset="cifar10", path=str(tmp_path)), training=True).train
    assert train is not None and train.targets.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    image, target = train.load(4)
    assert (image.mode, image.size, target) == ("RGB", (32, 32), 3)
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pixels[2][0])


def test_what_cannot_be_read_is_one_line(cifar100: Path, tmp_path: Path) -> None:
    def opened(path: object) -> None:
        open_splits(Data(dataset="cifar100", path=path and str(path)), training=True)

    with pytest.raises(UserError, match="CIFAR-100 needs --data-path"):
        opened(None)
    with pytest.raises(UserError, match=r"no CIFAR-100 in .*: no fine_label_names\.txt there"):
        opened(tmp_path / "nowhere")
    (tmp_path / "other/cifar-100-python").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"as pickles, which can run code: fetch the binary version"
    ):
        opened(tmp_path / "other")
    folder = cifar100 / "cifar-100-binary"
    whole = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(whole[:-1])
    with pytest.raises(UserError, match="no multiple of the 3074 of a picture"):
        opened(cifar100)
    (folder / "train.bin").write_bytes(bytes([0, 100]) + whole[2:])
    with pytest.raises(UserError, match="a picture of class 100, and 100 have names"):
        opened(cifar100)
    names = (folder / "fine_label_names.txt").read_text()
    (folder / "fine_label_names.txt").write_text(names + "more\n" * 200)
    with pytest.raises(UserError, match="names 300 classes: 256 at most"):
        opened(cifar100)
    (folder / "fine_label_names.txt").write_text(names)
    (folder / "train.bin").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train.bin \(No such file"):
        opened(cifar100)


def test_the_crop_of_cifar_moves_the_picture_and_pads_it_black(cifar100: Path) -> None:
    data = Data(dataset="cifar100", path=str(cifar100), mean=(0.0,) * 3, std=(1.0,) * 3)
    train = open_splits(data, training=True).train
    assert train is not None
    image, _ = train.load(0)
    plain = Augment(crop_padding=4, rand_augment="", color_jitter=0.0, erase=0.0, flip=0.0)
    transform = train_transform(plain, data, 32)
    whole = torch.nn.functional.pad(
        torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255, (4, 4, 4, 4)
    )
    windows = [whole[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    places = set()
    for seed in range(12):
        torch.manual_seed(seed)
        crop = transform(image)
        [place] = [n for n, window in enumerate(windows) if torch.allclose(crop, window)]
        places.add(place)
    assert len(places) > 5


def test_settings_of_the_other_crop_have_no_effect_beside_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"augment\.crop_scale has no effect with"):
        deit.run(["--train_student", "--set=augment.crop_padding=4", "--device=cpu",
                  "--set=augment.crop_scale=[0.5,1.0]", f"--output={tmp_path}"])  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        name if number < 1 else pytest.param(name, marks=pytest.mark.slow)
        for number, name in enumerate(PAIRS)
    ],
)
@pytest.mark.slow
def test_a_pair_trains_its_teacher_and_two_steps(name: str, cifar100: Path, tmp_path: Path) -> None:
    deit.run(
        ["--train_teacher", f"--config=configs/cifar100/teacher_{teacher_of(name)}.yaml",
         f"--data-path={cifar100}", f"--output={tmp_path}", "--device=cpu", "--workers=0",
         "--set=train.batch_size=8", "--epochs=1"]
    )  # fmt: skip
    deit.run(
        ["--train_student", f"--config=configs/cifar100/{name}", f"--data-path={cifar100}",
         f"--output={tmp_path}", "--name=pair", "--device=cpu", "--workers=0",
         "--set=train.batch_size=8", "--epochs=1"]
    )  # fmt: skip
    rows = read_metrics(tmp_path / "pair/metrics.jsonl", "epoch")
    assert [row["step"] for row in rows] == [2] and {"ce", "kl", "repr"} <= set(rows[0])


def teacher_of(name: str) -> str:
    teachers = ("resnet32x4", "resnet50", "vgg13", "wrn_40_2")
    return next(teacher for teacher in teachers if name.startswith(teacher))
