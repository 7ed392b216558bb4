"""Which images a batch holds: shuffled from (seed, epoch), shared out evenly over processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from srd.data.views import SHUFFLE, derive
from srd.errors import UserError


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
        repeat: the number of epochs after which order and views repeat; None: never.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeat: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.repeat = size, batch_size, seed, repeat
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
        epoch = self.epoch % self.repeat if self.repeat else self.epoch
        order = self.order(epoch)
        for step in range(self.first_step, len(self)):
            yield self._share(epoch, order, step)

    def keys(self, epoch: int, step: int) -> list[tuple[int, int]]:
        """This rank's share of one batch of an epoch."""
        return self._share(epoch, self.order(epoch), step)

    def _share(self, epoch: int, order: np.ndarray, step: int) -> list[tuple[int, int]]:
        batch = order[step * self.batch_size : (step + 1) * self.batch_size].tolist()
        return [(epoch, index) for index in rank_share(batch, self.rank, self.world_size)]


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
    """Every image exactly once over all ranks, in order, without padding; epoch 0.

    Args:
        every: 2 for each second image, and so on.
    """

    def __init__(
        self, size: int, batch_size: int, rank: int = 0, world_size: int = 1, every: int = 1
    ) -> None:
        self.indices = range(rank * every, size, world_size * every)
        self.batch_size = max(1, batch_size // world_size)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]
