"""Views: an augmented image is a function of (seed, epoch, index), and of nothing else.

Not of the number of workers or processes, nor of restarts. Each draw is made inside `seeded`,
which derives the generators' states from a key and puts the old states back.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from srd.data.sources import ImageSource
from srd.errors import UserError

# The first word of a key: which stream of draws it names.
VIEW, SHUFFLE, MIX, STEP, INIT = range(5)

BROKEN_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def derive(*key: int) -> np.ndarray:
    """Three 32-bit words that are a function of `key` (non-negative integers) alone."""
    return np.random.SeedSequence(key).generate_state(3)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, `random`, NumPy's and torch's global CPU generators follow `key`; outside, nothing moved."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = derive(*key)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


class View(NamedTuple):
    """One sample as a worker hands it over."""

    image: Tensor | None  # (3, H, W); None where the file is broken and has no substitute
    target: int
    broken: tuple[str, ...]  # names and reasons of the files that could not be read
    needed: bool = False  # a training image: without it, its batch is too small


class Batch(NamedTuple):
    """A batch: images (B, 3, H, W) float32, targets (B,) int64, and the broken files met."""

    images: Tensor
    targets: Tensor
    broken: list[str]
    missing: int = 0  # training images that neither could be read nor had a substitute


class SeededViews(Dataset[View]):
    """Images with a transform whose draws follow (seed, epoch, index).

    Args:
        source: where images come from.
        transform: PIL image to a (3, H, W) tensor; may draw from any of the global generators.
        seed: of the run.
        substitute: in training, put the next readable image in the place of a broken one, so
            that a batch keeps its size; in evaluation, leave the broken image out.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Image.Image], Tensor],
        seed: int,
        substitute: bool,
    ) -> None:
        self.source, self.transform, self.seed, self.substitute = (
            source,
            transform,
            seed,
            substitute,
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> View:
        epoch, index = key
        broken: list[str] = []
        for attempt in range(min(len(self.source), 10) if self.substitute else 1):
            position = (index + attempt) % len(self.source)
            try:
                image, target = self.source.load(position)
            except BROKEN_IMAGE as error:
                broken.append(f"{self.source.name(position)} ({_one_line(error)})")
                continue
            with seeded(VIEW, self.seed, epoch, index):
                return View(self.transform(image), target, tuple(broken))
        return View(None, -1, tuple(broken), needed=self.substitute)


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return " ".join(reason.split()) or type(error).__name__


def collate(views: Sequence[View]) -> Batch:
    """Stack the views that have an image; remember the files that could not be read."""
    whole = [view for view in views if view.image is not None]
    images = [view.image for view in whole if view.image is not None]
    return Batch(
        torch.stack(images) if images else torch.empty(0),
        torch.tensor([view.target for view in whole], dtype=torch.long),
        [name for view in views for name in view.broken],
        sum(view.image is None and view.needed for view in views),
    )


def rank_share(batch: Sequence[int], rank: int, world_size: int) -> list[int]:
    """This rank's part of a global batch: a block from the front and its mirror image at the back.

    Mixup and cutmix pair sample i with sample B-1-i. In a mirror-symmetric share the pairs of the
    global batch are pairs of the share, so mixing locally mixes the same samples.

    Raises:
        ValueError: the batch does not divide into mirror-symmetric shares.
    """
    if world_size == 1:
        return list(batch)
    if len(batch) % (2 * world_size):
        raise ValueError(f"a batch of {len(batch)} has no mirror-symmetric {world_size} shares")
    half = len(batch) // (2 * world_size)
    front = batch[rank * half : (rank + 1) * half]
    back = batch[len(batch) - (rank + 1) * half : len(batch) - rank * half]
    return [*front, *back]


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Shuffled global batches of (epoch, index), this rank's share of each; can start mid-epoch.

    The last, incomplete batch of an epoch is dropped. `position` is set before each pass.

    Args:
        size: number of images.
        batch_size: the global (effective) batch size.
        seed: of the run.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_step = 0, 0
        check_shares(batch_size, world_size)
        if len(self) == 0:
            raise UserError(
                f"a batch of {batch_size} is larger than the {size} training images: "
                "set a smaller --batch-size"
            )

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        return self.size // self.batch_size

    def start_at(self, epoch: int, first_step: int = 0) -> None:
        """The next pass yields the batches of `epoch` from `first_step` on."""
        self.epoch, self.first_step = epoch, first_step

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of the images in `epoch`, shape (size,)."""
        return np.random.RandomState(derive(SHUFFLE, self.seed, epoch)).permutation(self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, self.order(self.epoch)
        for step in range(self.first_step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
            yield [(epoch, index) for index in rank_share(batch, self.rank, self.world_size)]


def check_shares(batch_size: int, world_size: int) -> None:
    """Raise a UserError unless the processes can share a batch evenly, in mirror-symmetric parts."""
    unit = 2 * world_size
    if world_size > 1 and batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        nearest = below if below and batch_size - below <= above - batch_size else above
        raise UserError(
            f"a batch of {batch_size} does not divide into {world_size} even shares: the nearest "
            f"that does is {nearest}"
        )


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Every image exactly once over all ranks, in order, without padding; epoch 0."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)
        self.batch_size = max(1, batch_size // world_size)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]


def make_loader(
    views: Dataset[Any],
    batches: Sampler[list[tuple[int, int]]],
    workers: int,
    pin_memory: bool,
    collate_fn: Callable[[Any], Any] = collate,
) -> DataLoader[Any]:
    """A loader of what `collate_fn` makes (`Batch`); its workers, at most one a core, live as long."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers, cores or 1)  # more would only wait for a core
    return DataLoader(
        views,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        collate_fn=collate_fn,
        worker_init_fn=_start_worker,
        # The loader draws a seed for its workers on every pass: from here, not from the run's state.
        generator=torch.Generator(),
    )


def _start_worker(_: int) -> None:
    """Signals sent to the whole process group are for the process that trains.

    It finishes its step, for which it needs its workers. So a worker ignores Ctrl-C and SIGUSR1,
    and obeys SIGTERM only from its parent (which sends it when it exits).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class BrokenFiles:
    """Counts files that cannot be read: stops at the first, or skips them all when asked to."""

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self.names: set[str] = set()

    def check(self, batch: Batch) -> list[str]:
        """The broken files of `batch` not met before.

        Raises:
            UserError: there is one and `skip` is off, or no image could be read in its place.
        """
        new = [name for name in dict.fromkeys(batch.broken) if name not in self.names]
        if new and not self.skip:
            raise UserError(
                f"cannot read {new[0]}; replace the file, or skip such files with "
                "--set data.skip_broken=true"
            )
        if batch.missing:
            raise UserError(
                f"cannot read {batch.broken[0]}, nor the images after it: replace the files"
            )
        self.names.update(new)
        return new
