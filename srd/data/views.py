"""Views: an augmented image is a function of (seed, epoch, index), and of nothing else.

Not of the number of workers or processes, nor of restarts. Each draw is made inside `seeded`,
which derives the generators' states from a key and puts the old states back.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from srd.data.batched_operations import Drawn
from srd.data.encoded import Encoded, encoded
from srd.data.finish import Box, Unfinished
from srd.data.image_source import BROKEN_IMAGE, DamagedPicture, ImageSource, one_line
from srd.data.numpy_draws import other_numpy_draws
from srd.data.picture_costs import TooLarge
from srd.printable import printable

if TYPE_CHECKING:
    from srd.data.undecoded import Undecoded

# The first word of a key: which stream of draws it names.
VIEW, SHUFFLE, MIX, STEP, INIT = range(5)


def derive(*key: int) -> np.ndarray:
    """Three 32-bit words that are a function of `key` (non-negative integers) alone."""
    words = np.array(key, dtype=np.uint32) if max(key, default=0) < 1 << 32 else key
    return np.random.SeedSequence(words).generate_state(3)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, `random`, NumPy's and torch's global CPU generators follow `key`; outside, nothing moved."""
    python, cpu, words = random.getstate(), torch.get_rng_state(), derive(*key)
    with other_numpy_draws():
        random.seed(int(words[0]))
        np.random.seed(words[1])
        torch.default_generator.manual_seed(int(words[2]))
        try:
            yield
        finally:
            random.setstate(python)
            torch.set_rng_state(cpu)


class View(NamedTuple):
    """One sample as a worker hands it over."""

    # (3, H, W), or what it is decoded from; None where the file is broken and has no substitute
    image: Tensor | Undecoded | None
    target: int
    broken: tuple[str, ...]  # names and reasons of the files that could not be read
    needed: bool = False  # a training image: without it, its batch is too small
    key: tuple[int, int] = (0, 0)  # (epoch, index): what all of its draws follow
    drawn: tuple[Drawn, ...] = ()  # operations on an image in bytes
    erased: tuple[Box, ...] = ()  # of it, once it is normalised


class SeededViews(Dataset[View]):
    """Images with a transform whose draws follow (seed, epoch, index).

    Args:
        source: where images come from.
        transform: PIL image to a (3, H, W) tensor, or to one that is `Unfinished`; may draw from any
            of the global generators.
        files: it takes an `Encoded` instead, where the source has files.
        seed: of the run.
        substitute: in training, put the next readable image in the place of a broken one, so
            that a batch keeps its size; in evaluation, leave the broken image out.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Any], Tensor | Unfinished],
        seed: int,
        substitute: bool,
        *,
        files: bool = False,
    ) -> None:
        self.source, self.transform, self.seed, self.substitute = (
            source,
            transform,
            seed,
            substitute,
        )
        self.files = files

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> View:
        epoch, index = key
        broken: list[str] = []
        for attempt in range(min(len(self.source), 10) if self.substitute else 1):
            position = (index + attempt) % len(self.source)
            try:
                image, target = self._load(position)
            except BROKEN_IMAGE as error:
                broken.append(f"{printable(self.source.name(position))} ({one_line(error)})")
                continue
            try:
                with seeded(VIEW, self.seed, epoch, index):
                    seen = self.transform(image)
            except (TooLarge, MemoryError, DamagedPicture) as error:  # others: transform's mistakes
                broken.append(f"{printable(self.source.name(position))} ({one_line(error)})")
                continue
            seen = seen if isinstance(seen, Unfinished) else Unfinished(seen)
            return View(
                seen.pixels,
                target,
                tuple(broken),
                key=key,
                drawn=seen.drawn,
                erased=seen.erased,
            )
        return View(None, -1, tuple(broken), needed=self.substitute, key=key)

    def _load(self, position: int) -> tuple[Image.Image | Encoded, int]:
        return encoded(self.source, position) if self.files else self.source.load(position)
