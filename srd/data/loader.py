"""From views to batches on a device: workers, collation, files that cannot be read."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from srd.data.finish import Finish, Rest, gather
from srd.data.guard import check_descriptors
from srd.data.views import View
from srd.device import on_device
from srd.errors import UserError


class Batch(NamedTuple):
    """A batch: images (B, 3, H, W) in float32, or in bytes with what finishes them, but for those that it
    decodes; targets (B,) int64, and the broken files met. See `to_device`."""

    images: Tensor
    targets: Tensor
    broken: list[str]
    missing: int = 0  # training images that neither could be read nor had a substitute
    keys: Tensor | None = None  # (B, 2) int64: (epoch, index) of every view; None: not known
    rest: Rest | None = None  # to do with images in bytes
    finish: Finish | None = None  # None: they are finished


def collate(views: Sequence[View], finish: Finish | None = None) -> Batch:
    """Stack the views that have an image; remember the files that could not be read.

    In a worker, images are stacked in the memory that it shares with the process that trains.

    Args:
        finish: what is to become of images in bytes.
    """
    whole = [view for view in views if view.image is not None]
    images = [view.image for view in whole if view.image is not None]
    decoded = [image for image in images if isinstance(image, Tensor)]
    return Batch(
        default_collate(decoded) if decoded else torch.empty(0),
        torch.tensor([view.target for view in whole], dtype=torch.long),
        [name for view in views for name in view.broken],
        sum(view.image is None and view.needed for view in views),
        torch.tensor([view.key for view in whole], dtype=torch.long).reshape(-1, 2),
        gather(images, [v.drawn for v in whole], [v.erased for v in whole]) if finish else None,
        finish,
    )


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
    check_descriptors(workers)
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

    It finishes its step, for which it needs its workers. So a worker ignores Ctrl-C, SIGUSR1 and the
    end of a terminal, and obeys SIGTERM only from its parent (which sends it when it exits).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class BrokenFiles:
    """Counts files that cannot be read: stops at the first, or skips them all when asked to.

    Args:
        mend: what to do about one, for the message.
    """

    def __init__(
        self,
        skip: bool,
        mend: str = "replace the file, or skip such files with --set data.skip_broken=true",
    ) -> None:
        self.skip, self.mend = skip, mend
        self.names: set[str] = set()

    def check(self, batch: Batch) -> list[str]:
        """The broken files of `batch` not met before.

        Raises:
            UserError: there is one and `skip` is off, or no image could be read in its place.
        """
        new = [name for name in dict.fromkeys(batch.broken) if name not in self.names]
        if new and not self.skip:
            raise UserError(f"cannot read {new[0]}; {self.mend}")
        if batch.missing:
            raise UserError(
                f"cannot read {batch.broken[0]}, nor the images after it: replace the files"
            )
        self.names.update(new)
        return new


def to_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images (channels last on a GPU) and targets on the device, without waiting for the copy."""
    images = on_device(batch.images, device)
    if device.type == "cuda" and images.ndim == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    if batch.finish is not None:
        images = batch.finish(images, batch.rest)
    return images.to(dtype), batch.targets.to(device, non_blocking=True)
