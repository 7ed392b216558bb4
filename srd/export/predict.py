"""Predictions for pictures: finding them, batching them, and ranking the classes."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from srd.data.batches import EvalBatches
from srd.data.folder_images import SUFFIXES, by_suffix, files_below, is_picture
from srd.data.image_source import BROKEN_IMAGE, as_it_is, open_image, read_image, upright
from srd.data.loader import make_loader
from srd.data.views import SeededViews
from srd.errors import UserError
from srd.export.classifier import Classifier, probabilities
from srd.files.limits import LIMITS
from srd.printable import printable

STDIN = "-"
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".3gp")
NO_VIDEO = "a video: save the frames that you mean as pictures, and name those"


class Picture(NamedTuple):
    """A picture's name and, where it has no file of its own, its bytes."""

    name: str
    content: bytes | None = None


class Guess(NamedTuple):
    """One of the classes ranked highest: its number, label, and probability."""

    number: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The classes ranked highest for one picture, the likeliest first; or why there are none."""

    name: str
    top: tuple[Guess, ...] = ()
    broken: str | None = None  # its name, and what is wrong with it

    def row(self) -> dict[str, object]:
        """What a JSON line holds."""
        top = [
            {"class": guess.number, "label": guess.label, "probability": guess.probability}
            for guess in self.top
        ]
        return {"image": self.name, "top": top}

    def __str__(self) -> str:
        lines = [
            f"  {100 * g.probability:6.2f} %  {g.number:>4}  {printable(g.label)}" for g in self.top
        ]
        return "\n".join([printable(self.name), *lines])


class Pictures:
    """Pictures as an `ImageSource` whose "class" is the picture's own position."""

    classes: list[str] = []  # noqa: RUF012 (nobody adds to it)

    def __init__(self, pictures: Sequence[Picture], turn: bool = False, mode: str = "RGB") -> None:
        self.pictures, self.turn, self.mode = pictures, turn, mode

    def __len__(self) -> int:
        return len(self.pictures)

    def load(self, index: int) -> tuple[Image.Image, int]:
        name, content = self.pictures[index]
        if content is None and name.lower().endswith(VIDEOS):
            raise OSError(NO_VIDEO)
        if content is None and os.path.isdir(name):
            raise OSError(f"no pictures in it: looked for {', '.join(SUFFIXES)}")
        file = name if content is None else io.BytesIO(content)
        return read_image(file, upright if self.turn else as_it_is, self.mode), index

    def name(self, index: int) -> str:
        return self.pictures[index].name


class Found(NamedTuple):
    """What is to be looked at, and what to tell of it."""

    pictures: list[Picture]
    notes: list[str]


def find_pictures(arguments: Iterable[str], stdin: BinaryIO) -> Found:
    """Pictures by name, those in folders (recursively, sorted), and what `-` brings.

    Standard input is one picture where it starts like one, else a list of files and folders, one a
    line. Files that are named are taken as they are, whatever their suffix; in folders, what is no
    picture by its name is skipped, and counted in the notes. A folder without pictures stands for itself:
    it cannot be read.

    Raises:
        UserError: nothing at all, only folders without pictures, or standard input that is neither.
    """
    pictures: list[Picture] = []
    notes: list[str] = []
    for argument in arguments:
        found = _from_stdin(stdin) if argument == STDIN else _named(argument)
        pictures += found.pictures
        notes += found.notes
    if not pictures:
        raise UserError("no pictures: name files or folders, or - for standard input")
    if all(picture.content is None and os.path.isdir(picture.name) for picture in pictures):
        raise UserError(f"no pictures in {pictures[0].name}: looked for {', '.join(SUFFIXES)}")
    return Found(pictures, notes)


def _named(name: str) -> Found:
    if not os.path.isdir(name):
        return Found([Picture(name)], [])
    try:
        files = sorted(Path(folder, file) for folder, names in files_below(name) for file in names)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror or error}") from None
    pictures = [Picture(str(file)) for file in files if is_picture(file.name)]
    others = [file.name for file in files if not is_picture(file.name)]
    video = "; videos are not read" if any(n.lower().endswith(VIDEOS) for n in others) else ""
    notes = [f"skipped in {name}: {by_suffix(others)}{video}"] if others else []
    return Found(pictures or [Picture(name)], notes)


def _from_stdin(stdin: BinaryIO) -> Found:
    content = stdin.read(LIMITS.picture_bytes + 1)
    if len(content) > LIMITS.picture_bytes:
        raise UserError(f"standard input brings more than {LIMITS.picture_bytes >> 20} MiB")
    if _is_picture(content):
        return Found([Picture("standard input", content)], [])
    if b"\0" in content:
        raise UserError("standard input is neither a picture nor a list of files, one a line")
    lines = [os.fsdecode(line.rstrip(b"\r")) for line in content.split(b"\n")]
    named = [_named(line) for line in lines if line]
    return Found([p for f in named for p in f.pictures], [n for f in named for n in f.notes])


def _is_picture(content: bytes) -> bool:
    """Whether `content` starts like a format that Pillow reads, damaged or not."""
    try:
        open_image(io.BytesIO(content)).close()
    except UnidentifiedImageError:
        return False
    except BROKEN_IMAGE:
        pass
    return True


def predict(
    classifier: Classifier,
    pictures: Sequence[Picture],
    device: torch.device,
    top: int = 5,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """Predictions in the order of `pictures`; a broken picture does not stop the others.

    Args:
        device: where `classifier.model` is.
        top: classes for each picture, at most as many as there are.

    Raises:
        UserError: the network has no classes, or gives no probabilities of them.
    """
    description = classifier.description
    if not description.num_classes:
        raise UserError(
            f"{classifier.name} is a backbone without a head: it has features, and no classes to predict"
        )
    images = description.preprocessing
    source, transform = Pictures(pictures, description.turned, images.mode), images.transform()
    views = SeededViews(source, transform, seed=0, substitute=False)
    batches = EvalBatches(len(pictures), batch_size)
    workers = 0 if len(pictures) <= batch_size else os.cpu_count() or 1
    for indices, batch in zip(batches, make_loader(views, batches, workers, False), strict=True):
        guesses: list[tuple[Guess, ...]] = []
        if len(batch.images):
            likely = probabilities(classifier.model, batch.images.to(device))
            if likely.shape[1] != len(description.labels) or not likely.isfinite().all():
                raise UserError(
                    f"{classifier.name} gives {likely.shape[1]} values for {len(description.labels)} "
                    "classes, or some that are no numbers: it is damaged"
                )
            guesses = rank(likely, description.labels, top)
        ranked = dict(zip(batch.targets.tolist(), guesses, strict=True))
        broken = iter(batch.broken)
        for _, index in indices:
            if index in ranked:
                yield Prediction(pictures[index].name, ranked[index])
            else:
                yield Prediction(pictures[index].name, broken=next(broken))


def rank(likely: Tensor, labels: Sequence[str], top: int) -> list[tuple[Guess, ...]]:
    """The likeliest classes of each picture, from probabilities (B, C)."""
    values, numbers = likely.topk(min(top, len(labels)))
    return [
        tuple(Guess(n, labels[n], p) for n, p in zip(row, ps, strict=True))
        for row, ps in zip(numbers.tolist(), values.tolist(), strict=True)
    ]
