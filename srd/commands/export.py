"""Hand a student on: `srd export runs/deit_tiny_srd`.

Takes a run's folder, a run's checkpoint, or a released file, and writes one folder with
safetensors, ONNX, torch.export, what timm and the Hugging Face Hub need, and a model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from srd.cli import Parser, parse_strictly
from srd.errors import UserError
from srd.export.formats import FORMATS, choose_formats
from srd.libraries import importing
from srd.printable import printable


def make_parser() -> Parser:
    """All flags."""
    parser = Parser(prog="srd export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="CHECKPOINT_OR_RUN", help="a run's folder, or a file of weights")
    add("--output", metavar="DIR", help="the folder to write (default: exports/<name>)")
    formats = f"of {' '.join(FORMATS)} (default: all)"
    add("--format", nargs="+", action="extend", metavar="FORMAT", help=formats)
    add("--name", help="title of the model card (default: the run's name)")
    add("--licence", "--license", default="unknown", help="of the weights, for the model card")
    add("--overwrite", action="store_true", help="take the place of an earlier export")
    add("--push-to-hub", metavar="USER/NAME", help="publish it on the Hugging Face Hub")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Hand a student on, in a folder: safetensors, ONNX, torch.export, timm.

    Raises:
        UserError: wrong flags, no such student, a package that is missing, a folder that is there.
        RunFailed: a graph does not compute what the network computes, or writing failed.
    """
    flags = parse_strictly(make_parser(), arguments)
    formats = FORMATS if flags.format is None else ",".join(flags.format).split(",")
    choose_formats(formats)
    with importing():  # takes seconds: mistakes in the command are told before
        from srd.export.classifier import open_classifier
        from srd.export.folder import check_place, export
        from srd.export.hub import check_hub, push

    if flags.push_to_hub:
        check_hub(flags.push_to_hub)
    if Path(flags.model).suffix == ".onnx":
        raise UserError(f"{flags.model} is an export already: give what it was made from")
    classifier = open_classifier(flags.model)
    if flags.name:
        classifier = classifier._replace(name=flags.name)
    folder = Path(flags.output or Path("exports") / classifier.name).expanduser()
    check_place(folder, flags.overwrite)
    tell_what(classifier)
    export(
        classifier,
        folder,
        formats=formats,
        licence=flags.licence,
        overwrite=flags.overwrite,
        report=print,
    )
    for file in sorted(folder.iterdir()):
        print(f"{printable(str(file))}  {file.stat().st_size / 1e6:.3f} MB")
    if flags.push_to_hub:
        print(push(folder, flags.push_to_hub))


def tell_what(classifier: Any) -> None:
    """What is about to be exported, and what was taken for granted."""
    description = classifier.description
    images = description.preprocessing
    count = description.num_classes
    classes = f"{count} classes" if count else "a backbone without a head"
    about = description.about
    model, accuracy = about.get("Model"), about.get("Accuracy") or about.get("Features")
    what = f"{model or description.architecture}, {classes}: {accuracy}"
    print(printable(what))
    if not description.settings:
        print(f"no run's configuration beside these weights, so images as released: {images}")
