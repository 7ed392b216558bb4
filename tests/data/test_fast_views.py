"""The fast path: the released path's draws, and pixels within the bound that docs/settings.md states."""

from __future__ import annotations

import io
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timms
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms
from torchvision.transforms.functional import InterpolationMode

from deit.main import run
from srd.config.fields import Augment, Data
from srd.data.augment import train_transform
from srd.data.digits import DigitImages
from srd.data.encoded import Encoded, encoded, read_head
from srd.data.fast_views import Normalised, fast_steps
from srd.data.finish import Unfinished, leave_unfinished
from srd.data.folder_images import FolderImages
from srd.data.image_source import Subset
from srd.data.picture_costs import TooLarge
from srd.data.views import VIEW, SeededViews, seeded
from srd.errors import exit_code
from tests.data.pictures import picture

pytest.importorskip("simplejpeg")
OPERATIONS = pytest.importorskip("srd.data.fast_operations").OPERATIONS

SIZE = 64
SIZES = [(100, 75), (70, 60), (250, 190), (60, 180), (640, 480), (320, 330)]  # the fourth: enlarged
# Mean absolute difference of a view, in 255ths, and the share of its values further apart than 16.
MEAN, SHARE = 7.0, 0.08
OVERALL = 1.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of six sizes, and kinds that the fast decoder leaves to Pillow, or turns."""
    root = tmp_path_factory.mktemp("photos")
    (root / "train" / "a").mkdir(parents=True)
    (root / "train" / "b").mkdir()
    for number, size in enumerate(SIZES):
        picture(*size, seed=number).save(root / "train" / "a" / f"{number}.jpg", quality=90)
    some = picture(130, 90, seed=9)
    some.save(root / "train" / "b" / "png.png")
    some.save(root / "train" / "b" / "progressive.jpg", progressive=True)
    some.convert("L").save(root / "train" / "b" / "grey.jpg")
    some.convert("CMYK").save(root / "train" / "b" / "cmyk.jpg")
    some.save(root / "train" / "b" / "444.jpg", subsampling=0)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        some.save(root / "train" / "b" / f"turned{orientation}.jpg", exif=exif, subsampling=0)
    return root


def views(folder: Path, **augment: Any) -> tuple[Any, Any, FolderImages]:
    """The released and the fast transform up to the bytes, and their pictures."""
    transform = train_transform(Augment(**augment), Data(), SIZE)
    source = FolderImages(folder, "train")
    return leave_unfinished(transform)[0], leave_unfinished(transform, "fast")[0], source


def drawn(transform: Any, picture: Any, key: tuple[int, int]) -> tuple[Unfinished, list[Any]]:
    """A view, and where its draws have left the generators."""
    with seeded(VIEW, 0, *key):
        view = transform(picture)
        states = [
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            torch.get_rng_state().numpy(),
        ]
    return view, [states[0], states[1], states[2].tobytes()]


def compare(folder: Path, epochs: int, **augment: Any) -> np.ndarray:
    """Of each view: mean absolute difference, and the share beyond 16; the draws are the same."""
    released, fast, source = views(folder, **augment)
    found = []
    for epoch in range(epochs):
        for index in range(len(source)):
            one, states = drawn(released, source.load(index)[0], (epoch, index))
            other, again = drawn(fast, encoded(source, index)[0], (epoch, index))
            assert states == again
            assert [box[:2] for box in one.erased] == [box[:2] for box in other.erased]
            assert all(
                torch.equal(a.values, b.values)
                for a, b in zip(one.erased, other.erased, strict=True)
            )
            assert other.pixels.shape == (3, SIZE, SIZE) and other.pixels.dtype == torch.uint8
            apart = (one.pixels.int() - other.pixels.int()).abs().double()
            found.append((float(apart.mean()), float((apart > 16).double().mean())))
    return np.array(found)


def check(found: np.ndarray) -> None:
    assert found[:, 0].max() < MEAN and found[:, 1].max() < SHARE
    assert found[:, 0].mean() < OVERALL


def test_crops_and_flips_of_smooth_pictures_are_closer(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    for number, size in enumerate(SIZES):
        picture(*size, seed=number, grain=1).save(tmp_path / f"train/a/{number}.jpg", quality=90)
    found = compare(tmp_path, 20, rand_augment="")
    assert found[:, 0].max() < 3 and found[:, 1].max() < 0.01


def test_pictures_of_a_few_pixels_are_the_same(tmp_path: Path) -> None:
    """Of which timm may draw parts without height, or without width."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    for size in ((1, 1), (1, 2), (3, 1)):
        for kind in ("png", "jpg"):
            picture(*size).save(tmp_path / f"train/a/{size[0]}{size[1]}.{kind}")
    found = compare(tmp_path, 20, rand_augment="")
    assert found[:, 0].max() < 3
    crop = fast_steps([RandomResizedCropAndInterpolation(SIZE)])[0]
    boxes = [crop.draw(1, 1)[0] for _ in range(50)]
    assert any(0 in box[2:] for box in boxes)


@pytest.mark.parametrize("epochs", [11, pytest.param(250, marks=pytest.mark.slow)])
def test_a_key_draws_the_same_and_gives_the_same_pixels(folder: Path, epochs: int) -> None:
    check(compare(folder, epochs))


@pytest.mark.parametrize(
    "settings",
    [
        {"interpolation": "random", "erase_count": 3, "erase": 1.0},
        {"interpolation": "bilinear", "rand_augment": "", "color_jitter": 0.0, "erase": 0.0},
        {"interpolation": "nearest", "rand_augment": "rand-m5-n3-mstd101-t3a", "flip": 1.0},
        {"rand_augment": "original-mstd0.5"},
        {"rand_augment": "augmix-m5-w2"},  # run as released
        {"rand_augment": ""},  # colour jitter, likewise
        {"crop_padding": 8},
    ],
    ids=str,
)
def test_other_settings_too(folder: Path, settings: dict[str, Any]) -> None:
    check(compare(folder, 1, **settings))


@pytest.mark.parametrize("name", sorted(timms.NAME_TO_OP))
def test_an_operation_is_timms(name: str) -> None:
    own = OPERATIONS.get(timms.NAME_TO_OP[name])
    if own is None:
        assert name.startswith("GaussianBlur")
        return
    image = picture(60, 44, seed=3)
    for level in (0.0, 3.3, 10.0):
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            how = {"resample": resample, "fillcolor": (124, 116, 104)}
            random.seed(int(level))
            arguments = (timms.LEVEL_TO_ARG[name] or (lambda *_: ()))(
                level, {"translate_const": 27}
            )
            expected = np.asarray(timms.NAME_TO_OP[name](image, *arguments, **how)).astype(int)
            apart = np.abs(own(np.asarray(image), *arguments, **how) - expected)
            if name == "Rotate":  # OpenCV's cubic, and edges that fade
                assert apart.mean() < 3
            else:
                assert apart.max() <= 3


def test_rows_below_the_crop_are_not_unpacked_and_the_others_are_the_same(folder: Path) -> None:
    """Rounding differs only where pixels become fewer."""
    fewer = 0
    for path in sorted(folder.glob("train/*/*.jpg")):
        picture = Encoded(path.read_bytes(), turn=True)
        (height, width), whole = picture.size(), np.asarray(picture.image)
        for top, rows in ((0, height // 3), (height // 3, height // 3), (5, height - 5)):
            pixels, scale = picture.pixels((top, 0, rows, width), (height + 1, width + 1))
            fewer += len(pixels) < height
            assert scale == 1 and (pixels[: top + rows] == whole[: top + rows]).all()
    assert fewer >= 16


def test_files_that_pillow_refuses_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "train" / "a" / "4.jpg").read_bytes()
    damaged = {"cut": whole[: len(whole) // 2], "none": b"no picture", "head": whole[:100]}
    zeroed = bytearray(whole)
    zeroed[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    damaged["zeroed"] = bytes(zeroed)
    damaged["marker"] = whole[:-400] + b"\xff\x05" + whole[-398:]  # below most crops
    target = tmp_path / "train" / "a"
    target.mkdir(parents=True)
    for name, content in damaged.items():
        (target / f"{name}.jpg").write_bytes(content)
    released, fast, source = views(tmp_path)
    one = SeededViews(source, released, 0, substitute=False)
    other = SeededViews(source, fast, 0, substitute=False, files=True)
    for index in range(len(source)):
        expected, seen = one[0, index], other[0, index]
        assert seen.broken == expected.broken
        assert (seen.image is None) == (expected.image is None)
        if expected.image is None:  # the next one stands in for it, in training
            assert SeededViews(source, fast, 0, substitute=True, files=True)[0, index].broken
    assert sum(one[0, index].image is None for index in range(len(source))) >= 3


def test_what_asks_for_too_much_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    picture(40, 30).save(file, "JPEG")
    content = bytearray(file.getvalue())
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = b"\x27\x10\x27\x10"
    for what in (lambda e: e.size(), lambda e: e.image):
        with pytest.raises(TooLarge, match="10000x10000 pixels"):
            what(Encoded(bytes(content)))
    content[place + 5 : place + 9] = b"\xff\xdc\x00\x01"
    with pytest.raises(TooLarge, match="too long and narrow"):
        Encoded(bytes(content)).size()


def test_the_head_says_what_pillow_says(folder: Path) -> None:
    """Of plain files; all that Pillow alone reads is left to it, whatever stands in a damaged head."""
    left = []
    for path in sorted(folder.glob("train/*/*")):
        content = path.read_bytes()
        head = read_head(content)
        if head is None:
            left.append(path.stem)
            continue
        with Image.open(path) as image:
            assert head[:3] == (*image.size, image.getexif().get(0x0112, 1))
        for end in range(0, 700, 7):
            read_head(content[:end])
    assert left == ["cmyk", "png", "progressive"]


def test_a_source_without_files_is_read_as_it_is() -> None:
    released, fast = (
        leave_unfinished(train_transform(Augment(), Data(), 16), path)[0]
        for path in ("released", "fast")
    )
    source = Subset(DigitImages("train"), np.arange(5, 9))
    one = SeededViews(source, released, 0, True)[0, 2]
    other = SeededViews(source, fast, 0, True, files=True)[0, 2]
    assert one.image is not None and other.image is not None and one.target == other.target
    assert (one.image.int() - other.image.int()).abs().double().mean() < MEAN


def test_torchvisions_chain_and_its_numbers(folder: Path) -> None:
    """RandomResizedCrop, flip, ToTensor and Normalize: draws, pixels, and the bits of the numbers."""
    crop, flip = transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()
    to_tensor, normalize = transforms.ToTensor(), transforms.Normalize((0.4, 0.5, 0.6), (0.2,) * 3)
    numbers = Normalised(to_tensor, normalize)
    released, fast = transforms.Compose([crop, flip]), transforms.Compose(fast_steps([crop, flip]))
    source = FolderImages(folder, "train")
    for index in range(len(source)):
        one, states = drawn(released, source.load(index)[0], (0, index))
        other, again = drawn(fast, encoded(source, index)[0], (0, index))
        assert states == again
        assert np.abs(np.asarray(one).astype(int) - other).mean() < MEAN
        assert torch.equal(numbers(other), normalize(to_tensor(Image.fromarray(other))))
    nearest = transforms.RandomResizedCrop(SIZE, interpolation=InterpolationMode.NEAREST_EXACT)
    assert type(fast_steps([nearest])[0]).__name__ == "Released"


def test_what_is_not_installed_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def find(name: str) -> Any:
        return None if name == "simplejpeg" else find_spec(name)

    monkeypatch.setattr("srd.installed.find_spec", find)
    flags = ["--train_student", "--config", str(recipe), "--output", str(tmp_path)]
    assert exit_code(lambda: run([*flags, "--set", "data.pixels=fast"])) == 2
    said = capsys.readouterr().err
    assert "fast pixels need simplejpeg: pip install 'simple-recipe-distillation[fast]'" in said
    assert not list(tmp_path.iterdir())
