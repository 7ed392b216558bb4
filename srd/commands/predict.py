"""What is in the picture: `srd predict exports/deit_tiny_srd cat.jpg photos/`.

MODEL is an exported folder, an ONNX file that was exported here, a run's folder, or a file of
weights. IMAGE is a picture, a folder (searched recursively), or `-`: standard input, a picture or
a list of files, one a line. What is no picture in a folder is skipped, and counted. Pictures that cannot
be read, and videos, are named; the others go on, and the exit code is 2.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.errors import UserError
from srd.libraries import importing
from srd.printable import printable


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd predict", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL", help="exported folder, model.onnx, run's folder, or weights")
    add("images", metavar="IMAGE", nargs="+", help="picture, folder, or - for standard input")
    add("--top", type=int, default=5, help="classes to show for each picture")
    add("--json", action="store_true", help="JSON lines instead of a table")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--batch-size", "--batch_size", type=int, default=32, help="pictures at once")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Say what is in pictures.

    A reader that has seen enough (`| head`) is no failure.

    Raises:
        UserError: wrong flags, no such model, no pictures, or some that cannot be read.
    """
    try:
        predict_all(parse_strictly(make_parser(), arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def predict_all(flags: Any) -> None:
    """Print the classes of every picture, and name those that cannot be read."""
    if flags.top < 1 or flags.batch_size < 1:
        raise UserError("--top and --batch-size must be at least 1")
    with importing():  # takes seconds: mistakes in the command are told before
        from srd.device import choose_device
        from srd.export.predict import find_pictures, predict

    device = choose_device(flags.device)
    pictures, notes = find_pictures(flags.images, sys.stdin.buffer)
    classifier = open_model(Path(os.path.expanduser(flags.model)), device)
    for note in notes:
        print(printable(note), file=sys.stderr)
    broken = 0
    for prediction in predict(classifier, pictures, device, flags.top, flags.batch_size):
        if prediction.broken:
            broken += 1
            print(f"cannot read {printable(prediction.broken)}", file=sys.stderr)
        else:
            print(json.dumps(prediction.row()) if flags.json else prediction, flush=True)
    if broken:
        raise UserError(f"{broken} of {len(pictures)} pictures could not be read (named above)")


def open_model(path: Path, device: Any) -> Any:
    """The classifier, on `device`."""
    from srd.export.classifier import open_classifier
    from srd.export.layout import ONNX, WEIGHTS
    from srd.export.onnx_network import open_onnx

    inside = path / ONNX
    if os.path.isfile(inside) and not os.path.isfile(path / WEIGHTS):
        path = inside
    if path.suffix == ".onnx":
        return open_onnx(path, device.type)
    classifier = open_classifier(path)
    classifier.model.to(device)
    return classifier
